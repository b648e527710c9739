"""CLIP's text side: token ids in the front end, embeddings in the worker."""

import html
import logging
from collections.abc import Sequence
from functools import lru_cache

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.vision.scorer import TextTower

logger = logging.getLogger(__name__)


def as_clip_reads(text: str) -> str:
    """A text as OpenAI's own tokenizer prepares it, which transformers' tokenizer does not.

    Broken and typographic characters are mended (ftfy), HTML entities are resolved, white space
    is collapsed, and everything is in lower case.
    """
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


class ClipTextTokenizer:
    """Texts to CLIP token ids, truncated to what CLIP reads, keeping the end token.

    The ids are those of the tokenizer that CLIP was trained with (:func:`as_clip_reads`).

    Args:
        clip_model: hub name or folder of the CLIP checkpoint.
        max_tokens: how many tokens its text tower reads (77 for every published CLIP).
    """

    def __init__(self, clip_model: str, max_tokens: int) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(clip_model)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"No CLIP tokenizer at {clip_model!r} ({error}). Set the server option "
                "'clip_model' to a CLIP checkpoint's hub name or folder."
            ) from error
        # Without what transformers does around every call, where the tokenizer is one of its fast.
        self._backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.encode_special_tokens = True
            self._backend.no_truncation()
            self._backend.no_padding()
        self._max_tokens = max_tokens
        self._tell_truncated = lru_cache(maxsize=4096)(self._warn_truncated)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int32 [texts, longest], padded on the right after each text's end token."""
        rows = []
        for text in texts:
            ids = self._ids(as_clip_reads(text))
            if len(ids) > self._max_tokens:
                self._tell_truncated(text)
                ids = [*ids[: self._max_tokens - 1], ids[-1]]
            rows.append(ids)
        longest = max(map(len, rows))
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.int32)

    def _ids(self, text: str) -> list[int]:
        """Token ids; a text that spells CLIP's end token does not end there."""
        if self._backend is not None:
            return list(self._backend.encode(text).ids)
        encoded = self._tokenizer(text, verbose=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def _warn_truncated(self, text: str) -> None:
        logger.warning(
            "A guiding text of %d characters is longer than the %d tokens that CLIP reads; "
            "its end does not guide the pruning. It begins: %.40r",
            len(text),
            self._max_tokens,
            text,
        )


class ClipTextTower(TextTower):
    """CLIP's text transformer and projection, in ``dtype``, whole on every rank."""

    def __init__(self, config: CLIPTextConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = CLIPTextModelWithProjection._from_config(config, dtype=dtype)

    def clip_names(self) -> dict[str, str]:
        """Own parameter name to the tensor's name in a CLIP checkpoint."""
        return {own: own.removeprefix("model.") for own, _ in self.named_parameters()}

    @torch.no_grad()
    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings (the projected end-token state), float32 [texts, projection_dim].

        ``token_ids`` is an integer [texts, length]. The tower is causal, so what stands after a
        text's end token has no influence and needs no mask.
        """
        embeddings = self.model(input_ids=token_ids.long()).text_embeds
        assert isinstance(embeddings, Tensor)
        return embeddings.float()

    @torch.no_grad()
    def tokens(self, token_ids: Tensor) -> Tensor:
        """The embedding, then every token's projected state.

        float32 [texts, 1 + length, projection_dim].
        """
        output = self.model(input_ids=token_ids.long())
        states = self.model.text_projection(output.last_hidden_state)
        return torch.cat([output.text_embeds[:, None], states], dim=1).float()

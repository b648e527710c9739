"""SigLIP's text side: token ids in the front end, embeddings in the worker."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, SiglipTextConfig, SiglipTextModel

from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.vision.scorer import TextTower

logger = logging.getLogger(__name__)


class SiglipTextTokenizer:
    """Texts to token ids, all of the length that SigLIP reads, in lower case as it was trained.

    Args:
        siglip: hub name or folder of the SigLIP checkpoint; SigLIP-2's have another tokenizer.
        max_tokens: how many tokens its text tower reads (64 of most published ones).
    """

    def __init__(self, siglip: str, max_tokens: int) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(siglip)
        except (ImportError, OSError, ValueError) as error:
            raise WeightsError(
                f"No SigLIP tokenizer at {siglip!r} ({error}). Set the server option "
                "'clip_model' to a SigLIP checkpoint's hub name or folder."
            ) from error
        self._max_tokens = max_tokens
        self._tell_truncated = lru_cache(maxsize=4096)(self._warn_truncated)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int32 [texts, max_tokens], padded on the right as in training.

        Those of a text's own tokens are as they are; an id that is no part of the text, as the end
        token's and padding's, is sent as its complement ``~id``, which is negative. A text of which
        the tokenizer leaves nothing has its end token.
        """
        return torch.tensor([self._row(text) for text in texts], dtype=torch.int32)

    def _row(self, text: str) -> list[int]:
        """Of one text; one that spells a special token does not have it."""
        options = {
            "verbose": False,
            "split_special_tokens": True,
            "return_special_tokens_mask": True,
        }
        made = self._tokenizer(text.lower(), **options)
        if len(made["input_ids"]) > self._max_tokens:
            self._tell_truncated(text)
            made = self._tokenizer(
                text.lower(), truncation=True, max_length=self._max_tokens, **options
            )
        ids, special = list(made["input_ids"]), list(made["special_tokens_mask"])
        if all(special):
            special[0] = 0
        ids = [~one if foreign else one for one, foreign in zip(ids, special, strict=True)]
        return [*ids, *[~int(self._tokenizer.pad_token_id)] * (self._max_tokens - len(ids))]

    def _warn_truncated(self, text: str) -> None:
        logger.warning(
            "A guiding text of %d characters is longer than the %d tokens that SigLIP reads; "
            "its end does not guide the pruning. It begins: %.40r",
            len(text),
            self._max_tokens,
            text,
        )


class SiglipTextTower(TextTower):
    """SigLIP's text transformer and projection, in ``dtype``, whole on every rank."""

    def __init__(self, config: SiglipTextConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = SiglipTextModel._from_config(config, dtype=dtype)

    def clip_names(self) -> dict[str, str]:
        """Own parameter name to the tensor's name in a SigLIP checkpoint."""
        return {
            own: f"text_model.{own.removeprefix('model.').removeprefix('text_model.')}"
            for own, _ in self.named_parameters()
        }

    @torch.no_grad()
    def forward(self, token_ids: Tensor) -> Tensor:
        """Two embeddings a text, one behind the other, float32 [texts, 2 width].

        The mean of the projected states of the text's own tokens, and the embedding that SigLIP was
        trained for, the projected state of the last token, which may be padding. Padding is not
        masked, as in training. ``token_ids``: as :class:`SiglipTextTokenizer` makes them.
        """
        output = self._run(token_ids)
        mean = self._mean(token_ids, output.last_hidden_state)
        return torch.cat([mean, output.pooler_output.float()], dim=-1)

    @torch.no_grad()
    def tokens(self, token_ids: Tensor) -> Tensor:
        """The mean embedding, then the projected state of every token and of padding.

        float32 [texts, 1 + length, width].
        """
        states = self._run(token_ids).last_hidden_state
        by_token = self.model.head(states).float()
        return torch.cat([self._mean(token_ids, states)[:, None], by_token], dim=1)

    def _run(self, token_ids: Tensor) -> Any:
        return self.model(input_ids=torch.where(token_ids >= 0, token_ids, ~token_ids).long())

    def _mean(self, token_ids: Tensor, states: Tensor) -> Tensor:
        """Of the projected states of a text's own tokens, float32 [texts, width]."""
        own = (token_ids >= 0).float()
        shares = own / own.sum(dim=1, keepdim=True).clamp(min=1)
        # The projection is affine and the shares come to 1, so it may follow the mean.
        mean = (shares[:, None] @ states.float())[:, 0].to(self.model.dtype)
        projected: Tensor = self.model.head(mean)
        return projected.float()

"""LLaVA with a SigLIP tower in plain transformers: what is kept of an image, and what is said then.

Scores are those of ``tests/vision/siglip_rederivation.py``. Four methods are written again here, as
sorted lists, and two that read single tokens or words are derived as ``tests/pruning`` does; the
others, which that holds, choose by these scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.e2e.texts import telling_words, token_cosine
from tests.pruning import test_eadp, test_mmtok
from tests.pruning.rederivation import Calls
from tests.vision.siglip_rederivation import SlowSiglip
from vllm_litelvlm.pruning.base import Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


@dataclass(frozen=True)
class Seen:
    """An image's tokens, [patches, width] float32, and what is known of its patches."""

    tokens: Tensor
    scores: dict[str, Tensor]


class SiglipReference:
    """The model of a LLaVA folder and its SigLIP folder, float32; scores in double precision."""

    def __init__(self, llava: Path, siglip: Path) -> None:
        self.slow = SlowSiglip(siglip)
        self.processor = AutoProcessor.from_pretrained(llava)
        model = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32)
        self.llava = model.eval()

    @torch.no_grad()
    def see(self, image: Image.Image) -> Seen:
        pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        made = self.llava.model.vision_tower(pixels, output_hidden_states=True)
        tokens = made.hidden_states[self.llava.config.vision_feature_layer][0]
        scores = self.slow.see(image, pixels)
        torch.testing.assert_close(tokens, scores["hidden"].float(), rtol=1e-4, atol=1e-4)
        return Seen(tokens, scores)

    @torch.no_grad()
    def select(
        self, seen: Seen, texts: Sequence[str], budget: int, method: str, options: Any
    ) -> Selection:
        """By the package's method, from independent scores."""
        signals = self._signals(seen, texts)
        [selection] = build_pruner(method, options).select(signals, budget).unbind()
        return selection

    def _signals(self, seen: Seen, texts: Sequence[str]) -> Signals:
        """Independent scores."""
        values = {name: one[None].float() for name, one in seen.scores.items()}
        values["features"] = seen.tokens[None]
        projected = self.llava.model.multi_modal_projector(seen.tokens)
        values["projected"] = projected[None]
        words = self._words(texts)
        if texts:
            compared = self.slow.compare(seen.scores, texts)
            aligned = self.slow.model.vision_model.post_layernorm(seen.scores["hidden"]).numpy()
            tokens = [self.slow.token_embeddings(text).numpy() for text in texts]
            by_token = [token_cosine(aligned, one.mean(axis=0), one) for one in tokens]
            compared["token_cosine"] = torch.from_numpy(np.array(by_token))
            compared["word_cosine"] = torch.cosine_similarity(words[:, None], projected, dim=-1)
            values |= {name: one[None].float() for name, one in compared.items()}
        known = {Signal(name): one for name, one in values.items() if name in set(Signal)}
        return Signals(
            images=1,
            patches=len(seen.tokens),
            device=torch.device("cpu"),
            text_counts=[len(texts)],
            values=known,
            word_counts=[len(words)],
        )

    def _words(self, texts: Sequence[str]) -> Tensor:
        """As the language model reads them, [words, its width]."""
        ids: list[int] = []
        for text in texts:
            said = telling_words(text)
            ids += self.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        embedded: Tensor = self.llava.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        return embedded

    @torch.no_grad()
    def choose(
        self,
        seen: Seen,
        texts: Sequence[str],
        budget: int,
        method: str,
        among: Sequence[int] | None = None,
    ) -> list[int]:
        """From their description alone; ``among``: the patches that may be kept."""
        if method == "eadp":
            return test_eadp.derive(self._signals(seen, texts), 0, budget, 1.0, Calls())
        if method == "mmtok":
            options = (0.02, 0.2, 0.5)
            return test_mmtok.derive(self._signals(seen, texts), 0, budget, options, Calls())
        places = list(range(len(seen.tokens)) if among is None else among)
        context = seen.scores["context"].tolist()
        if method == "cls-attention":
            context = seen.scores["cls_attention"].tolist()
        similarity = self.slow.compare(seen.scores, texts)["similarity"].tolist()
        lowest = [sorted(places, key=lambda j, s=row: s[j]) for row in similarity]
        if method == "trim":
            assert len(texts) == 1
            return sorted(lowest[0][len(places) - (budget - 1) :])
        chosen: set[int] = set()
        if method == "litelvlm" and len(texts) == 1:
            chosen = set(lowest[0][: max(1, int(budget * 0.5 + 0.5))])
        elif method == "litelvlm":
            chosen = set.intersection(*(set(order[:budget]) for order in lowest))
        others = sorted(set(places) - chosen, key=lambda j: -context[j])
        return sorted([*chosen, *others[: budget - len(chosen)]])

    @torch.no_grad()
    def follow(
        self, prompt: str, rows: Tensor, places: Sequence[int], last: int, answer: Sequence[int]
    ) -> list[float]:
        """Log-probabilities of an answer behind a prompt whose image is so many rows.

        Args:
            prompt: with one ``<image>``.
            rows: the image's tokens before the projector, [kept, width].
            places: of the rows behind the image's beginning.
            last: how many positions the image takes up.
            answer: token ids.
        """
        ids = self.processor.tokenizer(prompt)["input_ids"]
        at = ids.index(self.llava.config.image_token_id)
        embed = self.llava.get_input_embeddings()
        text = torch.tensor([*ids[:at], *ids[at + 1 :], *answer[:-1]])
        words = embed(text)
        image = self.llava.model.multi_modal_projector(rows)
        inputs = torch.cat([words[:at], image, words[at:]])[None]
        behind = range(at + last, at + last + len(text) - at)
        positions = torch.tensor([[*range(at), *(at + place for place in places), *behind]])
        logits = self.llava(inputs_embeds=inputs, position_ids=positions).logits[0, -len(answer) :]
        likely = logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])
        found: list[float] = likely[:, 0].tolist()
        return found

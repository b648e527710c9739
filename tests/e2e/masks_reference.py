"""Masks of a LLaVA with [SEG] in plain transformers; SAM by ``tests/grounding/rederivation.py``.

Nothing of the package is used but the words that ask.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.e2e.reference import Reference
from tests.grounding.rederivation import Slow


class MasksReference(Reference):
    """The model of a folder and its CLIP, float32; SAM in float64."""

    def __init__(self, llava: Path, clip: Path) -> None:
        super().__init__(llava, clip)
        self.sam = Slow.load(str(llava))
        files = [load_file(file) for file in llava.glob("*.safetensors")]
        self.head = {
            name.removeprefix("text_hidden_fcs.0."): tensor.float()
            for tensors in files
            for name, tensor in tensors.items()
            if name.startswith("text_hidden_fcs.")
        }
        self.seg = self.processor.tokenizer.convert_tokens_to_ids("[SEG]")

    @torch.no_grad()
    def vectors(
        self,
        image: Image.Image,
        messages: Sequence[dict[str, Any]],
        kept: list[int],
        original: bool,
    ) -> Tensor:
        """Prompts of SAM, [expressions, width], of a conversation whose answers have [SEG]."""
        rendered = self.processor.apply_chat_template(list(messages), tokenize=False)
        return self.pointed([image], self.ids(rendered), [kept], original)

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """A chat's prompt, from messages as it takes them."""
        turns = []
        for one in messages:
            content = one["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            kinds = [{**part, "type": part["type"].removesuffix("_url")} for part in parts]
            turns.append({"role": one["role"], "content": kinds})
        rendered: str = self.processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def ids(self, rendered: str) -> list[int]:
        """Tokens of a rendered conversation."""
        found: list[int] = self.processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return found

    @torch.no_grad()
    def pointed(
        self,
        images: Sequence[Image.Image],
        ids: list[int],
        kept: Sequence[list[int]],
        original: bool,
    ) -> Tensor:
        """The same of a conversation's tokens, with one for each image."""
        inputs, positions = self._inputs(ids, list(images), list(kept), False, original)
        states = self.llava.model.language_model(inputs_embeds=inputs, position_ids=positions)
        image_token = self.llava.config.image_token_id
        lengths = map(len, kept)
        expanded = [
            one for token in ids for one in [token] * (next(lengths) if token == image_token else 1)
        ]
        before = [place - 1 for place, token in enumerate(expanded) if token == self.seg]
        hidden = states.last_hidden_state[0, before]
        inner = torch.relu(hidden @ self.head["0.weight"].T + self.head["0.bias"])
        return inner @ self.head["2.weight"].T + self.head["2.bias"]

    def logits(self, image: Image.Image, vector: Tensor) -> NDArray[np.float64]:
        """Above 0 where the mask is, [height, width]."""
        features = self.sam.features(image)
        low, _ = self.sam.logits(features, vector)
        return self.sam.resized(low, image.size)

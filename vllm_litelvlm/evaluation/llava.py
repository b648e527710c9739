"""LLaVA in plain transformers, taken apart: image to features, text and features to an answer."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.decoder_walk import DecoderWalk, Prompt
from vllm_litelvlm.evaluation.tower import HfImages
from vllm_litelvlm.vision.checkpoint import check_tower
from vllm_litelvlm.vision.frame import Frame, padded


class HfLlava:
    """A LLaVA-1.5 of transformers and its processor.

    Args:
        checkpoint: hub name or folder.
        dtype: None for the checkpoint's own.
        device: where the model goes.

    ``tower_tensors`` are the vision tower's, under the names of a CLIP checkpoint and without
    what the LLaVA checkpoint lacks.

    Raises CompatibilityError for a LLaVA that pruning is not defined for.
    """

    def __init__(self, checkpoint: str, dtype: torch.dtype | None, device: torch.device) -> None:
        model, report = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=dtype or "auto", attn_implementation="sdpa", output_loading_info=True
        )
        check_tower(model.config)
        self.config = model.config
        self.tower_tensors = _tower_tensors(model.model.vision_tower, set(report["missing_keys"]))
        self.model = model.eval().to(device)
        self.device = device
        self._processor = AutoProcessor.from_pretrained(checkpoint)

    @property
    def tokenizer(self) -> Any:
        """The language model's."""
        return self._processor.tokenizer

    @cached_property
    def walk(self) -> DecoderWalk:
        """The language model, layer by layer. Raises CompatibilityError for other than Llama."""
        return DecoderWalk(self.model.model.language_model, self.model.lm_head, self._end_tokens)

    def images(self, image: Image.Image, frame: Frame = "crop") -> HfImages:
        """One image, ready for the vision tower."""
        processor = self._processor.image_processor
        square = padded(image, processor.image_mean) if frame == "pad" else image.convert("RGB")
        inputs = processor(square, return_tensors="pt")
        return HfImages(self.model, inputs["pixel_values"].to(self.device, self.model.dtype))

    def prompt(
        self, text: str, features: Tensor, offsets: Tensor | None = None, span: int = 0
    ) -> Prompt:
        """A user's turn of one image and ``text``, as ``vllm serve`` renders and tokenizes it.

        Args:
            text: what the user says of the image.
            features: the image's tokens before the projector, [kept, width of the tower].
            offsets: int64 [kept]: each one's position, counted from the image's first; consecutive
                ones if None.
            span: how many positions the image then takes up.

        Raises OptionsError for a text that holds the image placeholder itself.
        """
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        rendered = self._processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        tokens = self._processor.tokenizer(rendered, add_special_tokens=False, return_tensors="pt")[
            "input_ids"
        ][0].to(self.device)
        places = (tokens == self.config.image_token_id).nonzero()[:, 0]
        if len(places) != 1:
            raise OptionsError(
                f"The prompt comes to {len(places)} image placeholders; allowed: the one of its "
                f"image. Leave {self._processor.image_token!r} out of the text."
            )
        start = int(places[0])
        embedded = self.model.get_input_embeddings()(tokens)
        visual = self.model.model.multi_modal_projector(features[None])[0]
        embedded = torch.cat([embedded[:start], visual, embedded[start + 1 :]])
        if offsets is None:
            return Prompt(embedded, start, len(visual))
        before = torch.arange(start, device=self.device)
        after = torch.arange(start + span, span + len(tokens) - 1, device=self.device)
        positions = torch.cat([before, start + offsets, after])
        return Prompt(embedded, start, len(visual), positions)

    def generate(self, prompt: Prompt, max_tokens: int) -> tuple[int, ...]:
        """Greedy continuation by transformers' own generation, the end token included."""
        inputs = prompt.embedded[None]
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._end_tokens,
            pad_token_id=self._end_tokens[0] if self._end_tokens else None,
        )
        output = self.model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=self.device),
            position_ids=None if prompt.positions is None else prompt.positions[None],
            generation_config=config,
        )
        return tuple(output[0].tolist())

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's token ids as text: no end token, no special ones, no white space around."""
        said = tokens[:-1] if tokens and tokens[-1] in self._end_tokens else tokens
        text: str = self._processor.tokenizer.decode(list(said), skip_special_tokens=True)
        return text.strip()

    @property
    def _end_tokens(self) -> list[int]:
        given = self.model.generation_config.eos_token_id
        if given is None:
            return []
        return [given] if isinstance(given, int) else list(given)


def _tower_tensors(tower: Any, missing: set[str]) -> Mapping[str, Tensor]:
    tensors = {}
    for name, tensor in tower.state_dict().items():
        if f"model.vision_tower.{name}" not in missing:
            published = name if name.startswith("vision_model.") else f"vision_model.{name}"
            tensors[published] = tensor
    return tensors

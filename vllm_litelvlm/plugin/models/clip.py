"""What families whose vision tower is a CLIP's, or its kin's, have in common in the front end."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from vllm.config import ModelConfig, VllmConfig

from vllm_litelvlm.options import ServerOptions
from vllm_litelvlm.plugin.family import Family
from vllm_litelvlm.plugin.models.positions import install_rows
from vllm_litelvlm.plugin.processor import PruningProcessor
from vllm_litelvlm.vision.tower_kinds import Tokenizer, kind_of


class ClipFamily(Family):
    """LLaVAs: images in a CLIP's vision tower, guided by that CLIP's text tower.

    The tower may be of another kind of the CLIP family, which decides what is said of a CLIP here
    (:mod:`vllm_litelvlm.vision.tower_kinds`).
    """

    guidance: ClassVar[str] = "the text tower that its vision tower was trained with"

    def image_token(self, config: Any) -> int:
        """The ``<image>`` of its prompts."""
        return int(config.image_token_index)

    def check(self, vllm_config: VllmConfig) -> None:
        """The tower has to be of a known kind, read one layer before its last."""
        config = vllm_config.model_config.hf_config
        kind_of(config).check(config)

    def prepare(self, server: ServerOptions, model_config: ModelConfig) -> dict[str, Any]:
        """``clip_model``, a hub name or an absolute folder, and what its text tower reads."""
        config = model_config.hf_config
        kind = kind_of(config)
        clip_model = kind.find(server.clip_model, config, model_config.model)
        clip_config = kind.read(clip_model, config)
        if Path(clip_model).is_dir():
            clip_model = str(Path(clip_model).resolve())
        return {
            "clip_model": clip_model,
            "text_tokens": clip_config.text_config.max_position_embeddings,
        }

    def install_positions(self, vllm_config: VllmConfig) -> None:
        """By rows that the language model's own embedding is not told of."""
        install_rows(vllm_config)


class ClipTexts(PruningProcessor):
    """The part of a processor that reads guiding texts as the CLIP does."""

    def tokenize_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """By the CLIP's own tokenizer."""
        return self._text_tokenizer(texts)

    def longest_texts(self, count: int) -> tuple[str, ...]:
        """As many tokens each as CLIP reads: start, end, and four digits are among them."""
        filler = " b" * (self.settings.own["text_tokens"] - 6)
        return tuple(f"{number:04d}{filler}" for number in range(count))

    @cached_property
    def _text_tokenizer(self) -> Tokenizer:
        own, kind = self.settings.own, kind_of(self.info.get_hf_config())
        return kind.tokenizer(own["clip_model"], own["text_tokens"])

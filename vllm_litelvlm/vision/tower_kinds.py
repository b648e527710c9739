"""The kinds of vision tower that a LLaVA may have, and what each answers where they differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.vision.checkpoint import (
    check_tower,
    default_clip_model,
    find_clip_model,
    read_clip_config,
)
from vllm_litelvlm.vision.clip_guidance import ClipGuidance
from vllm_litelvlm.vision.siglip_checkpoint import (
    check_siglip_tower,
    no_default_siglip,
    read_siglip_config,
)
from vllm_litelvlm.vision.siglip_guidance import SiglipGuidance
from vllm_litelvlm.vision.siglip_text import SiglipTextTokenizer
from vllm_litelvlm.vision.text import ClipTextTokenizer
from vllm_litelvlm.vision.tower_guidance import TowerGuidance

#: Texts to token ids, int32 [texts, length], as guidance reads them.
Tokenizer = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TowerKind:
    """Of a LLaVA's vision tower, and of the checkpoint that it was taken from.

    ``config`` below is the LLaVA's own, with ``vision_config`` in it.
    """

    #: What a LLaVA with such a tower is called in sentences.
    llava: str
    guidance: type[TowerGuidance]
    #: Raises CompatibilityError for a ``config`` that cannot be pruned.
    check: Callable[[Any], None]
    #: The checkpoint of a tower that names none. Raises WeightsError where there is none.
    default: Callable[[Any], str]
    #: The configuration of the checkpoint of a name, checked against ``config``.
    read: Callable[[str, Any], Any]
    #: Of the checkpoint of a name, for so many tokens.
    tokenizer: Callable[[str, int], Tokenizer]

    def find(self, given: str | None, config: Any, model: str) -> str:
        """The checkpoint to guide by; see :func:`find_clip_model`."""
        return find_clip_model(given, config, model, self.default)

    def guide(self, name: str, config: Any, dtype: torch.dtype) -> TowerGuidance:
        """Guidance by the checkpoint of a name, yet without weights."""
        build: Callable[..., TowerGuidance] = self.guidance
        return build(config.vision_config, self.read(name, config), dtype)


#: By the ``model_type`` of the tower's configuration.
KINDS = {
    "clip_vision_model": TowerKind(
        "LLaVA-1.5",
        ClipGuidance,
        check_tower,
        default_clip_model,
        lambda name, config: read_clip_config(name, config.vision_config),
        ClipTextTokenizer,
    ),
    "siglip_vision_model": TowerKind(
        "SigLIP-LLaVA",
        SiglipGuidance,
        check_siglip_tower,
        no_default_siglip,
        read_siglip_config,
        SiglipTextTokenizer,
    ),
}


def kind_of(config: Any) -> TowerKind:
    """The kind of a LLaVA's vision tower. Raises CompatibilityError for other kinds."""
    tower = getattr(config, "vision_config", None)
    kind = getattr(tower, "model_type", type(tower).__name__)
    if kind not in KINDS:
        raise CompatibilityError(
            f"litelvlm needs a CLIP or SigLIP vision tower; this model's is {kind!r}. "
            "Serve it without --plugin litelvlm."
        )
    return KINDS[kind]

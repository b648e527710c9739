"""GLaMM's language model, projector and [SEG] projection: configuration and names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_litelvlm.convert.checks import Shape
from vllm_litelvlm.convert.reading import read_json
from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.grounding.layout import PROJECTION

#: What of GLaMM's flat config.json is its language model's; without the first there is no telling.
NEEDED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
FIELDS = (
    *NEEDED_FIELDS,
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
)
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
#: A box in the prompt becomes features of these; pruning and masks need none.
REGIONS = "model.region_encoder."
#: Transformers up to 4.31 wrote what it now computes.
ROTARY = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def read_config(folder: Path) -> dict[str, Any]:
    """GLaMM's config.json. Raises CompatibilityError where it is another model's."""
    file = folder / "config.json"
    if not file.is_file():
        raise CompatibilityError(
            f"SOURCE {folder} is not a folder with a config.json. Download the checkpoint and name "
            "its folder: hf download MBZUAI/GLaMM-RefSeg --local-dir FOLDER"
        )
    fields = read_json(file)
    kind = fields.get("model_type")
    if kind != "llava":
        raise CompatibilityError(f"{file} has model_type {kind!r}; GLaMM's is 'llava'.")
    if "text_config" in fields:
        raise CompatibilityError(
            f"{file} has a 'text_config': that is llava-hf's layout, which needs no conversion."
        )
    if lacking := [name for name in NEEDED_FIELDS if name not in fields]:
        raise CompatibilityError(f"{file} lacks {', '.join(lacking)}; GLaMM's has them.")
    feature = fields.get("mm_vision_select_feature", "patch")
    if feature != "patch":
        raise CompatibilityError(
            f"{file} has mm_vision_select_feature {feature!r}; GLaMM's is 'patch'."
        )
    return fields


def llama_config(fields: Mapping[str, Any]) -> Any:
    """The LlamaConfig in a GLaMM's. Raises CompatibilityError for a value that none has."""
    try:
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            **{name: fields[name] for name in FIELDS if name in fields},
        )
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CompatibilityError(f"GLaMM's config.json is not a Llama's: {error}") from error


def language_names(config: Any) -> dict[str, str]:
    """GLaMM's name to llava-hf's of the language model's tensors."""
    return {name: f"language_model.{name}" for name in language_shapes(config)}


def language_shapes(config: Any) -> dict[str, Shape]:
    """By GLaMM's names, which are those of a Llama of its own."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


#: GLaMM's name to llava-hf's, each of a layer with a weight and a bias.
PROJECTIONS = {
    "model.mm_projector.0": "multi_modal_projector.linear_1",
    "model.mm_projector.2": "multi_modal_projector.linear_2",
    f"model.{PROJECTION}.0.0": f"{PROJECTION}.0.0",
    f"model.{PROJECTION}.0.2": f"{PROJECTION}.0.2",
}


def projection_names() -> dict[str, str]:
    """GLaMM's name to that in the output."""
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in PROJECTIONS.items()
        for kind in ("weight", "bias")
    }


def projection_shapes(vision: int, hidden: int, mask: int) -> dict[str, Shape]:
    """By GLaMM's names.

    Args:
        vision: width of the vision tower.
        hidden: of the language model.
        mask: of SAM's prompts.
    """
    sizes = [(hidden, vision), (hidden, hidden), (hidden, hidden), (mask, hidden)]
    shapes: dict[str, Shape] = {}
    for name, (rows, columns) in zip(PROJECTIONS, sizes, strict=True):
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes

"""Where the scorer's weights come from: the LLaVA checkpoint first, then a CLIP checkpoint."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from vllm_litelvlm.errors import CompatibilityError, WeightsError
from vllm_litelvlm.vision.clip import ClipScorer
from vllm_litelvlm.vision.text import ClipTextTower

logger = logging.getLogger(__name__)

#: The entry of a LLaVA's ``config.json`` that is this package's.
CONFIG_KEY = "litelvlm"

#: Geometry of the tower (width, layers, patch size, image size) to the published CLIP.
PUBLISHED_CLIPS = {
    (1024, 24, 14, 336): "openai/clip-vit-large-patch14-336",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
}


def find_clip_model(given: str | None, config: Any, model: str) -> str:
    """The CLIP to guide by: ``given``, else the model's own, else the published one.

    A model names its own in its ``config.json``, as ``"litelvlm": {"clip_model": ...}``: a hub
    name, or a folder beside that file.

    Args:
        given: hub name or folder, or None.
        config: the LLaVA's configuration, whose ``litelvlm`` attribute is the entry above.
        model: the LLaVA's hub name or folder.

    Raises WeightsError where there is neither, and no published CLIP has the tower's geometry.
    """
    if given is not None:
        return given
    own = getattr(config, CONFIG_KEY, None)
    if not isinstance(own, dict) or "clip_model" not in own:
        return default_clip_model(config.vision_config)
    named = str(own["clip_model"])
    beside = Path(model) / named
    return str(beside) if beside.is_dir() else named


def default_clip_model(tower: CLIPVisionConfig) -> str:
    """The published CLIP of a tower's geometry. Raises WeightsError where there is none."""
    geometry = (tower.hidden_size, tower.num_hidden_layers, tower.patch_size, tower.image_size)
    if geometry not in PUBLISHED_CLIPS:
        width, layers, patch, image = geometry
        raise WeightsError(
            f"No published CLIP has this vision tower's geometry (width {width}, {layers} layers, "
            f"patch {patch}, image {image}). Name the CLIP checkpoint that it was taken from in "
            "the server option 'clip_model' (a hub name or a folder)."
        )
    return PUBLISHED_CLIPS[geometry]


def read_clip_config(clip_model: str, tower: CLIPVisionConfig) -> CLIPConfig:
    """The CLIP checkpoint's configuration, checked against the tower.

    Raises WeightsError where it cannot be read or is not the tower's CLIP.
    """
    try:
        fields, _ = CLIPConfig.get_config_dict(clip_model)
        if fields.get("model_type") != "clip":
            raise ValueError(f"its model_type is {fields.get('model_type')!r}, not 'clip'")
        config = CLIPConfig.from_dict(fields)
    except (OSError, ValueError, AttributeError, StrictDataclassError) as error:
        raise WeightsError(
            f"No CLIP configuration at {clip_model!r} ({error}). Set the server option "
            "'clip_model' to a CLIP checkpoint's hub name or folder."
        ) from error
    # Where the two differ, CLIP's own model goes by the outer one.
    config.text_config.projection_dim = config.projection_dim
    for name in ("hidden_size", "num_hidden_layers", "patch_size", "image_size"):
        theirs, ours = getattr(config.vision_config, name), getattr(tower, name)
        if theirs != ours:
            raise WeightsError(
                f"The CLIP at {clip_model!r} has {name} {theirs}, the model's vision tower {ours}: "
                "it is not the CLIP that the tower was taken from. Set the server option "
                "'clip_model' to the one that is."
            )
    return config


def check_tower(config: object) -> None:
    """Raise CompatibilityError unless a LLaVA configuration is one that LiteLVLM is defined for."""
    tower = getattr(config, "vision_config", None)
    if not isinstance(tower, CLIPVisionConfig):
        kind = getattr(tower, "model_type", type(tower).__name__)
        raise CompatibilityError(
            f"litelvlm needs a CLIP vision tower; this model's is {kind!r}. "
            "Serve it without --plugin litelvlm."
        )
    layer = getattr(config, "vision_feature_layer", None)
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if layer not in (-2, tower.num_hidden_layers - 1) or strategy != "default":
        raise CompatibilityError(
            "litelvlm needs vision_feature_layer -2 and vision_feature_select_strategy 'default', "
            f"as LLaVA-1.5 has them; this model's are {layer!r} and {strategy!r}. "
            "Serve it without --plugin litelvlm."
        )


class TowerTap:
    """Notes the scorer's tensors while a LLaVA checkpoint streams past."""

    def __init__(self, scorer: ClipScorer) -> None:
        self._wanted = set(scorer.clip_names().values())
        self.found: dict[str, Tensor] = {}

    def __call__(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass the weights on, under the names that vLLM knows.

        transformers 5 saves the tower without the ``vision_model`` level; it is put back.
        """
        for name, tensor in weights:
            prefix, tower, rest = name.partition("vision_tower.")
            if tower and prefix in ("", "model."):
                rest = rest if rest.startswith("vision_model.") else f"vision_model.{rest}"
                if rest in self._wanted:
                    self.found[rest] = tensor.detach().to("cpu", torch.float32, copy=True)
                name = f"{prefix}{tower}{rest}"
            yield name, tensor


def load_guidance(
    scorer: ClipScorer, text_tower: ClipTextTower, tower_tensors: Mapping[str, Tensor], clip: str
) -> None:
    """Fill scorer and text tower: from ``tower_tensors`` where it has them, else from ``clip``.

    Raises WeightsError naming the first tensor that is missing or has another shape, and where it
    was looked for.
    """
    sources = {
        "the model's checkpoint": tower_tensors,
        f"the CLIP at {clip!r}": _read_clip_tensors(clip),
    }
    for module in (scorer, text_tower):
        parameters = dict(module.named_parameters())
        for own, name in module.clip_names().items():
            where = next((place for place, tensors in sources.items() if name in tensors), None)
            if where is None:
                raise WeightsError(
                    f"Tensor {name!r} is neither in {' nor in '.join(sources)}. Set the server "
                    "option 'clip_model' to a complete CLIP checkpoint."
                )
            _copy(sources[where][name], parameters[own], f"Tensor {name!r} of {where}")
    logger.info(
        "litelvlm guidance: %d vision tensors from the model's checkpoint, the rest from %s",
        len(tower_tensors),
        clip,
    )


def _read_clip_tensors(clip: str) -> dict[str, Tensor]:
    """Every tensor that the CLIP checkpoint really holds, on the CPU; misfits only as a shape."""
    try:
        with torch.device("cpu"):
            model, report = CLIPModel.from_pretrained(
                clip, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"The weights of the CLIP at {clip!r} cannot be read ({error}). Set the server option "
            "'clip_model' to a complete CLIP checkpoint's hub name or folder."
        ) from error
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in report["missing_keys"]
    }
    for name, shape, *_ in report["mismatched_keys"]:
        tensors[name] = torch.empty(tuple(shape), device="meta")
    return tensors


def _copy(tensor: Tensor, parameter: nn.Parameter, what: str) -> None:
    if tensor.shape != parameter.shape:
        raise WeightsError(
            f"{what} has shape {list(tensor.shape)}; expected {list(parameter.shape)}."
        )
    parameter.data.copy_(tensor)

"""Which CLIP guides a model, and whether the two fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig, CLIPVisionConfig

from vllm_litelvlm.errors import CompatibilityError, WeightsError

#: The entry of a LLaVA's ``config.json`` that is this package's.
CONFIG_KEY = "litelvlm"

#: Geometry of the tower (width, layers, patch size, image size) to the published CLIP.
PUBLISHED_CLIPS = {
    (1024, 24, 14, 336): "openai/clip-vit-large-patch14-336",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
}


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


def find_clip_model(
    given: str | None,
    config: Any,
    model: str,
    default: Callable[[Any], str] = default_clip_model,
) -> str:
    """The CLIP to guide by: ``given``, else the model's own, else the published one.

    A model names its own in its ``config.json``, as ``"litelvlm": {"clip_model": ...}``: a hub
    name, or a folder beside that file.

    Args:
        given: hub name or folder, or None.
        config: the LLaVA's configuration, whose ``litelvlm`` attribute is the entry above.
        model: the LLaVA's hub name or folder.
        default: the published one of a vision tower's configuration.

    Raises WeightsError where there is neither, and no published CLIP has the tower's geometry.
    """
    if given is not None:
        return given
    own = getattr(config, CONFIG_KEY, None)
    if not isinstance(own, dict) or "clip_model" not in own:
        return default(config.vision_config)
    named = str(own["clip_model"])
    beside = Path(model) / named
    return str(beside) if beside.is_dir() else named


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

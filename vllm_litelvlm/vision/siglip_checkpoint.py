"""Which SigLIP guides a model, and whether the two fit."""

from typing import Any, NoReturn

from huggingface_hub.errors import StrictDataclassError
from transformers import SiglipConfig, SiglipVisionConfig

from vllm_litelvlm.errors import CompatibilityError, WeightsError


def check_siglip_tower(config: Any) -> None:
    """Raise CompatibilityError unless a LLaVA reads all patches of one layer of its SigLIP.

    Whether it is the last but one, the SigLIP checkpoint says (:func:`read_siglip_config`):
    published models have that as layer -2 of a whole tower, or as layer -1 of one that lacks its
    last layer.
    """
    layer = getattr(config, "vision_feature_layer", None)
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if strategy != "full":
        raise CompatibilityError(
            "litelvlm needs vision_feature_select_strategy 'full' with a SigLIP vision tower, "
            f"which has no [CLS] before its patches; this model's is {strategy!r}. "
            "Serve it without --plugin litelvlm."
        )
    if not isinstance(layer, int):
        raise CompatibilityError(
            f"litelvlm needs one vision_feature_layer; this model's is {layer!r}. "
            "Serve it without --plugin litelvlm."
        )


def no_default_siglip(tower: SiglipVisionConfig) -> NoReturn:
    """Raise WeightsError: SigLIPs and SigLIP-2s of one geometry have different text towers."""
    raise WeightsError(
        f"This model's vision tower is a SigLIP (width {tower.hidden_size}, patch "
        f"{tower.patch_size}, image {tower.image_size}), and its geometry does not tell which. "
        "Name the SigLIP or SigLIP-2 checkpoint that it was taken from in the server option "
        "'clip_model' (a hub name such as 'google/siglip-so400m-patch14-384', or a folder)."
    )


def read_siglip_config(siglip: str, config: Any) -> SiglipConfig:
    """The SigLIP checkpoint's configuration, checked against a LLaVA's.

    Raises WeightsError where it cannot be read or is not the tower's SigLIP, and CompatibilityError
    where the LLaVA does not read its last but one layer.
    """
    fix = "Set the server option 'clip_model' to a SigLIP checkpoint's hub name or folder."
    try:
        fields, _ = SiglipConfig.get_config_dict(siglip)
        if fields.get("model_type") != "siglip":
            raise ValueError(f"its model_type is {fields.get('model_type')!r}, not 'siglip'")
        found = SiglipConfig.from_dict(fields)
    except (OSError, ValueError, AttributeError, StrictDataclassError) as error:
        raise WeightsError(f"No SigLIP configuration at {siglip!r} ({error}). {fix}") from error
    tower, theirs = config.vision_config, found.vision_config
    for name in ("hidden_size", "intermediate_size", "patch_size", "image_size"):
        if getattr(theirs, name) != getattr(tower, name):
            raise WeightsError(
                f"The SigLIP at {siglip!r} has {name} {getattr(theirs, name)}, the model's vision "
                f"tower {getattr(tower, name)}: it is not the SigLIP that the tower was taken "
                "from. Set the server option 'clip_model' to the one that is."
            )
    if not getattr(theirs, "vision_use_head", True):
        raise WeightsError(
            f"The SigLIP at {siglip!r} has no pooling head (vision_use_head is false), so images "
            f"and texts have no common space. {fix}"
        )
    if found.text_config.projection_size != theirs.hidden_size:
        raise WeightsError(
            f"The SigLIP at {siglip!r} has texts of width {found.text_config.projection_size} and "
            f"images of width {theirs.hidden_size}, which have no common space. {fix}"
        )
    layer = config.vision_feature_layer
    runs = layer if layer >= 0 else tower.num_hidden_layers + layer + 1
    if runs != theirs.num_hidden_layers - 1:
        raise CompatibilityError(
            f"litelvlm needs the last but one of a SigLIP's hidden states, that of layer "
            f"{theirs.num_hidden_layers - 1} of the {theirs.num_hidden_layers} that the one at "
            f"{siglip!r} has; this model's vision_feature_layer {layer} is layer {runs}. Set the "
            "server option 'clip_model' to the SigLIP that the tower was taken from, or serve "
            "without --plugin litelvlm."
        )
    return found

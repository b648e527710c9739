"""The CLIP that a GLaMM sees with: its checkpoint has none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from vllm_litelvlm.convert.checks import check_tensors
from vllm_litelvlm.convert.reading import ENTRIES, Held, read_headers, read_json
from vllm_litelvlm.errors import CompatibilityError, OptionsError

PREFIX = "vision_model."


@dataclass(frozen=True)
class VisionTower:
    """A CLIP's vision model, its weights not read yet."""

    folder: Path
    config: Any
    image_processor: Any
    #: By their names in llava-hf's files.
    held: dict[str, Held]
    #: Those names to the names in the CLIP's own files.
    own_names: dict[str, str]


def find_vision_tower(given: str) -> VisionTower:
    """The vision model of a CLIP, or a CLIP vision model, by hub name or folder.

    Raises OptionsError where there is none, and WeightsError where its tensors are not those of
    its configuration.
    """
    folder = _folder(given)
    try:
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise ValueError(f"its model_type is {kind!r}, not 'clip' or 'clip_vision_model'")
        config = CLIPVisionConfig.from_pretrained(folder)
        images = CLIPImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, CompatibilityError, StrictDataclassError) as error:
        raise OptionsError(
            f"--vision-tower {given}: no CLIP with config.json and preprocessor_config.json there "
            f"({error}). Name a CLIP's hub name or folder."
        ) from error
    cropped = images.crop_size["height"], images.crop_size["width"]
    if cropped != (config.image_size, config.image_size):
        raise OptionsError(
            f"--vision-tower {given}: its images are cropped to {cropped}, its model takes "
            f"{config.image_size} x {config.image_size} pixels. Name a CLIP where they agree."
        )
    held = read_headers(folder)
    # transformers 5 writes a vision model of its own without this level.
    if any(name.startswith(PREFIX) for name in held):
        held = {name: one for name, one in held.items() if name.startswith(PREFIX)}
    # Old files have the positions' numbers as well.
    held = {name: one for name, one in held.items() if not name.endswith(".position_ids")}
    renamed = {f"{PREFIX}{name.removeprefix(PREFIX)}": name for name in held}
    found = {name: held[own] for name, own in renamed.items()}
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    shapes = {
        f"{PREFIX}{name.removeprefix(PREFIX)}": tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    check_tensors(str(folder), found, shapes, "a CLIP of its config.json")
    return VisionTower(
        folder,
        config,
        images,
        {f"vision_tower.{name}": one for name, one in found.items()},
        {f"vision_tower.{name}": own for name, own in renamed.items()},
    )


def _folder(given: str) -> Path:
    if Path(given).is_dir():
        return Path(given)
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            folder = Path(snapshot_download(given, allow_patterns=["*.json", weights]))
            if any((folder / name).is_file() for name in ENTRIES):
                return folder
    except (OSError, ValueError) as error:
        raise OptionsError(
            f"--vision-tower {given} is neither a folder nor a hub name that can be had ({error}). "
            "Download it and name the folder."
        ) from error
    raise OptionsError(f"--vision-tower {given} has no weights, neither safetensors nor .bin.")

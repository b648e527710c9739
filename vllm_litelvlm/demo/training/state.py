"""Where the training stands, on disk: it can be killed at any moment and goes on from here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_litelvlm.errors import OptionsError


@dataclass
class Position:
    """What has been trained: the number of the stage, and in it the steps and seconds.

    ``seconds`` are all; ``whitened``: whether the projector has had its start.
    """

    stage: int = 0
    step: int = 0
    stage_seconds: float = 0.0
    seconds: float = 0.0
    whitened: bool = False

    def next_stage(self, number: int) -> None:
        """Go to the beginning of a stage."""
        self.stage, self.step, self.stage_seconds = number, 0, 0.0


def save_state(file: Path, position: Position, settings: str, parts: Mapping[str, Any]) -> None:
    """Write everything, so that at any moment the old or the new state is there whole."""
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    state = {
        "position": asdict(position),
        "settings": settings,
        "random": random,
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    unfinished = file.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(file)


def load_state(
    file: Path, settings: str, parts: Mapping[str, Any], device: torch.device
) -> Position:
    """Take up what :func:`save_state` wrote; a beginning where there is no file.

    Raises OptionsError for the state of a training with other settings.
    """
    if not file.is_file():
        return Position()
    state = torch.load(file, map_location=device, weights_only=True)
    if state["settings"] != settings:
        raise OptionsError(
            f"{file} is of a training with other settings ({state['settings']}; now {settings}). "
            "Name another output folder, or remove that file."
        )
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"]["cpu"].cpu())
    if "cuda" in state["random"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"].cpu())
    return Position(**state["position"])


def append_line(file: Path, entry: Mapping[str, Any]) -> None:
    """Add a line of JSON, numbers to five digits."""
    with file.open("a") as lines:
        lines.write(json.dumps(_rounded(entry)) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    return value

"""What lmms-eval calls for every question of ``scenes.yaml``."""

import io
from typing import Any

from PIL import Image


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(doc["image"])).convert("RGB")]


def text(doc: dict[str, Any], _: object = None) -> str:
    return str(doc["question"])


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    said = answers[0].strip().strip(".").casefold()
    return {"accuracy": float(said == doc["answer"].casefold())}

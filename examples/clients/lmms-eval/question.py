"""What lmms-eval calls for every question of ``question.yaml``."""

from PIL import Image


def visual(doc: dict[str, str]) -> list[Image.Image]:
    return [Image.open(doc["picture"]).convert("RGB")] if doc["picture"] else []


def text(doc: dict[str, str], _: object = None) -> str:
    return doc["question"]

"""What lm_eval calls for every question of ``picture_question.yaml``."""

from PIL import Image


def pictures(doc: dict[str, str]) -> list[Image.Image]:
    return [Image.open(doc["picture"])]

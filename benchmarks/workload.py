"""Requests that no cache has seen: every image and every question occurs once."""

import base64
import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

#: Pixels of every image; CLIP's own processor makes a square of 336 of it.
IMAGE_SIZE = (640, 480)
_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
_THINGS = ("hand", "window", "shadow", "wheel", "light", "table", "corner")


@dataclass(frozen=True)
class Prompt:
    """One user turn: an encoded image (a data URL) and a question about it."""

    image: str
    question: str


class Workload:
    """Gives out prompts of equal cost, the same sequence for the same ``seed``.

    The questions are permutations of the same words, so all have the same number of tokens: two
    prompts differ in length only by their visual tokens.
    """

    def __init__(self, seed: int) -> None:
        from skimage import data

        self._order = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._photographs = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
        self._asked: set[str] = set()

    def take(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts, encoded and ready to send."""
        return [Prompt(self._image(), self._question()) for _ in range(count)]

    def _image(self) -> str:
        """A random crop of a random photograph, resized, under noise of its own."""
        photograph = self._order.choice(self._photographs).convert("RGB")
        width = self._order.randint(photograph.width // 2, photograph.width)
        height = self._order.randint(photograph.height // 2, photograph.height)
        left = self._order.randint(0, photograph.width - width)
        top = self._order.randint(0, photograph.height - height)
        crop = photograph.crop((left, top, left + width, top + height)).resize(IMAGE_SIZE)
        pixels = np.asarray(crop, dtype=np.float32)
        noisy = pixels + self._noise.normal(scale=4.0, size=pixels.shape)
        encoded = io.BytesIO()
        image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
        image.save(encoded, format="JPEG", quality=90)
        return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()

    def _question(self) -> str:
        while True:
            things = self._order.sample(_THINGS, len(_THINGS))
            listed = " then the ".join(things)
            question = f"Look for the {listed} then say where in the picture they are."
            if question not in self._asked:
                self._asked.add(question)
                return question

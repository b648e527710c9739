"""What clients ask: conversations about images that no cache has seen before their block."""

import base64
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

#: Pixels of every image by default; CLIP's own processor makes a square of 336 of it.
IMAGE_SIZE = (640, 480)
_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
#: Every text has all of them, so that all are equally long.
WORDS = ("big", "red", "old", "new", "top", "far", "hot", "low")


class Kind(NamedTuple):
    """A workload: what it does, what its size counts, and whether these are requests."""

    title: str
    unit: str
    several: bool = False


WORKLOADS = {
    "new": Kind("Every image new", "image a request"),
    "expressions": Kind("Several texts about each image", "texts an image", several=True),
    "chat": Kind("Chats of several turns about one image", "turns", several=True),
    "gallery": Kind("Chats that gain an image a turn", "turns", several=True),
    "images": Kind("Several new images a request", "images a request"),
}


@dataclass(frozen=True)
class Conversation:
    """User turns about encoded images (data URLs), sent one after another.

    ``texts`` are all texts that are asked about these images, in other conversations too. The
    first turn brings all images, or each turn one where it is a ``gallery``.
    """

    images: tuple[str, ...]
    turns: tuple[str, ...]
    texts: tuple[str, ...]
    gallery: bool = False

    @property
    def image(self) -> str:
        return self.images[0]

    def messages(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """The whole conversation up to the turn that follows ``answers``."""
        parts = [{"type": "image_url", "image_url": {"url": image}} for image in self.images]
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(self.turns[: len(answers) + 1]):
            brought = parts[number : number + 1] if self.gallery else parts if number == 0 else []
            content = [*brought, {"type": "text", "text": turn}]
            messages.append({"role": "user", "content": content})
            if number < len(answers):
                messages.append({"role": "assistant", "content": answers[number]})
        return messages


class Workload:
    """Gives out conversations of equal cost, the same sequence for the same ``seed``.

    No image and no text occurs twice. The texts are permutations of the same words, so all have
    the same number of tokens: two first turns differ in length only by their visual tokens.
    """

    def __init__(self, seed: int, image_size: tuple[int, int] = IMAGE_SIZE) -> None:
        from skimage import data

        self._size = image_size
        self._order = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._photographs = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
        self._asked: set[str] = set()

    def take(self, requests: int, kind: str = "new", size: int = 1) -> list[Conversation]:
        """The next conversations of a kind, ready to send.

        ``requests`` is rounded up to whole conversations, and to all texts about an image.
        """
        each = size if WORKLOADS[kind].several else 1
        taken: list[Conversation] = []
        for _ in range(math.ceil(requests / each)):
            count = size if kind in ("images", "gallery") else 1
            images = tuple(self._image() for _ in range(count))
            texts = tuple(self._text() for _ in range(each))
            turns = [texts] if kind in ("chat", "gallery") else [(text,) for text in texts]
            taken += [Conversation(images, some, texts, kind == "gallery") for some in turns]
        return taken

    def _image(self) -> str:
        """A random crop of a random photograph, resized, under noise of its own."""
        photograph = self._order.choice(self._photographs).convert("RGB")
        width = self._order.randint(photograph.width // 2, photograph.width)
        height = self._order.randint(photograph.height // 2, photograph.height)
        left = self._order.randint(0, photograph.width - width)
        top = self._order.randint(0, photograph.height - height)
        crop = photograph.crop((left, top, left + width, top + height)).resize(self._size)
        pixels = np.asarray(crop, dtype=np.float32)
        noisy = pixels + self._noise.normal(scale=4.0, size=pixels.shape)
        encoded = io.BytesIO()
        image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
        image.save(encoded, format="JPEG", quality=90)
        return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()

    def _text(self) -> str:
        if len(self._asked) == math.factorial(len(WORDS)):
            raise ValueError(f"A workload has {len(self._asked)} different texts; all are used up.")
        while True:
            text = question(self._order.sample(WORDS, len(WORDS)))
            if text not in self._asked:
                self._asked.add(text)
                return text


def count_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many images a request's messages hold."""
    parts = [part for one in messages if one["role"] == "user" for part in one["content"]]
    return sum(part["type"] == "image_url" for part in parts)


def question(words: Sequence[str]) -> str:
    """A text that asks for something referred to by ``words``."""
    return f"Where is the {' '.join(words)} cup?"


def arrivals(rate: float, count: int, seed: str) -> list[float]:
    """Seconds at which ``count`` Poisson arrivals at ``rate`` a second come."""
    order = random.Random(seed)
    times: list[float] = []
    for _ in range(count):
        times.append((times[-1] if times else 0.0) + order.expovariate(rate))
    return times

"""Which expressions about an image are asked, and which of them together."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.dataset import SceneSample


@dataclass(frozen=True, eq=False)
class ReferringExpression:
    """A text that refers to a region of an image; ``mask`` is bool [height, width]."""

    name: str
    text: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ReferringImage:
    """An image and what is asked about it.

    ``number`` counts images from 0 and tells them apart. The expressions of one conversation are
    its rounds in order, and guide one pruning together.
    """

    number: int
    image: Image.Image
    conversations: tuple[tuple[ReferringExpression, ...], ...]


@dataclass(frozen=True)
class Protocol:
    """Which expressions are judged.

    Args:
        per_image: at most so many of each image's expressions; None for all. Where there are more,
            so many are drawn without replacement, as in GLaMM's evaluation code, whose draw has no
            seed. Here it depends on ``seed`` and on the name of the image's first expression
            alone: the same at every run, on every machine, and in any part of the data set.
        together: at most so many expressions share a conversation, in the order in which they were
            drawn, or else in the data set's.
        seed: another one draws other expressions.

    Raises OptionsError for numbers that are too small.
    """

    per_image: int | None = 3
    together: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("per_image", self.per_image, 1),
            ("together", self.together, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise OptionsError(f"{name}={value}; allowed: a whole number from {least}")

    def images(self, samples: Iterable[Sample]) -> Iterator[ReferringImage]:
        """The images of a data set with the expressions that are judged; one is held at a time.

        Of the samples, those of kind "box" that have a mask refer to a region; others are left
        out, and so are images without any. Samples about one image follow each other and share
        the image object.

        Raises OptionsError for a data set whose samples share their texts, so that it is not told
        which text is whose.
        """
        referring = (one for one in samples if one.kind == "box" and one.mask is not None)
        by_image = groupby(referring, key=lambda sample: id(sample.image))
        for number, (_, group) in enumerate(by_image):
            of_image = list(group)
            chosen = self._choose([_expression(sample) for sample in of_image])
            yield ReferringImage(
                number=number,
                image=of_image[0].image,
                conversations=tuple(
                    tuple(chosen[start : start + self.together])
                    for start in range(0, len(chosen), self.together)
                ),
            )

    def _choose(self, found: list[ReferringExpression]) -> list[ReferringExpression]:
        if self.per_image is None or len(found) <= self.per_image:
            return found
        key = zlib.crc32(found[0].name.encode())
        random = np.random.Generator(np.random.PCG64([self.seed, key]))
        places = random.choice(len(found), size=self.per_image, replace=False)
        return [found[place] for place in places.tolist()]


#: As GLaMM's code and LiteLVLM's tables do it (`num_classes_per_sample=3`).
AUTHORS = Protocol()
#: Every expression of the data set.
ALL = Protocol(per_image=None)


def _expression(sample: Sample) -> ReferringExpression:
    assert sample.mask is not None
    if not isinstance(sample, SceneSample) and len(sample.texts) != 1:
        raise OptionsError(
            f"{sample.name} has {len(sample.texts)} texts; masks are asked by a text a sample: "
            "load the data set with texts=1."
        )
    return ReferringExpression(sample.name, sample.texts[0], sample.mask)

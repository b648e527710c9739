"""From a data set to batches: which samples, which images are the same, which texts."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image
from torch import Tensor

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.analysis.base import Batch, Look, Settings
from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.preprocessing import Pixels
from vllm_litelvlm.evaluation.analysis.words import own_texts
from vllm_litelvlm.evaluation.samples import Dataset, Sample

#: Samples are drawn so many neighbours at a time, since those about one image are neighbours.
_NEIGHBOURS = 8


def draw_indices(total: int, wanted: int, seed: int) -> list[int]:
    """Which of ``total`` samples to take, rising: all, or blocks of neighbours at random."""
    if wanted >= total:
        return list(range(total))
    starts = list(range(0, total, _NEIGHBOURS))
    random.Random(seed).shuffle(starts)
    drawn = (index for start in starts for index in range(start, min(start + _NEIGHBOURS, total)))
    return sorted(index for index, _ in zip(drawn, range(wanted), strict=False))


def read_samples(dataset: Dataset, wanted: int, seed: int) -> Iterator[Sample]:
    """The drawn samples in the data set's order; what follows the last is not read."""
    indices = set(draw_indices(len(dataset), wanted, seed))
    last = max(indices, default=-1)
    for index, sample in enumerate(dataset):
        if index in indices:
            yield sample
        if index >= last:
            return


class Reader:
    """Makes batches of samples, and numbers the images.

    ``images`` and ``texts`` count what was looked at.
    """

    def __init__(self, encoder: Encoder, settings: Settings, reads_images: bool) -> None:
        self._encoder = encoder
        self._wording = settings.wording
        self._reads_images = reads_images
        self._numbers: dict[bytes, int] = {}
        self.texts = 0

    @property
    def images(self) -> int:
        """Different images so far."""
        return len(self._numbers)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Encode samples; each image once.

        Raises OptionsError, which names the sample, for an image or a mask that cannot be used.
        """
        pairs = [(sample, text) for sample in samples for text in self._texts(sample)]
        if not self._reads_images or not pairs:
            return Batch(samples, ())
        pixels: dict[int, Pixels] = {}
        numbers = []
        for sample, _ in pairs:
            number = self._number(sample.image)
            numbers.append(number)
            if number not in pixels:
                with _naming(sample):
                    pixels[number] = self._encoder.preprocessor.pixels(sample.image)
        order = {number: place for place, number in enumerate(pixels)}
        scores = self._encoder.scores(
            list(pixels.values()),
            [order[number] for number in numbers],
            [text for _, text in pairs],
        )
        self.texts += len(pairs)
        looks = []
        for row, ((sample, text), number) in enumerate(zip(pairs, numbers, strict=True)):
            own = {score: values[row] for score, values in scores.items()}
            looks.append(Look(sample, text, number, self._referred(sample), own))
        return Batch(samples, looks)

    def _texts(self, sample: Sample) -> Sequence[str]:
        if self._wording == "prompt":
            return [sample.prompt] if sample.prompt.strip() else []
        return own_texts(sample)

    def _referred(self, sample: Sample) -> Tensor | None:
        """The patches that a text means; None where the mask is that of several texts together."""
        if sample.mask is None or len(self._texts(sample)) > 1:
            return None
        with _naming(sample):
            return self._encoder.preprocessor.referred(sample.image, sample.mask)

    def _number(self, image: Image.Image) -> int:
        seen = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
        seen.update(image.tobytes())
        return self._numbers.setdefault(seen.digest(), len(self._numbers))


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """What is wrong with a sample's image or mask is told with the sample's name."""
    try:
        yield
    except OptionsError as error:
        raise OptionsError(f"Sample {sample.name!r}: {error}") from None

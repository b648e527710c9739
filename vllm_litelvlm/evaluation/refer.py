"""RefCOCO, RefCOCO+ and RefCOCOg: photographs, and sentences that each refer to one region."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.refer_files import (
    DataError,
    Reference,
    find_images,
    read_instances,
    read_references,
)
from vllm_litelvlm.evaluation.samples import Sample

ReferName = Literal["refcoco", "refcoco+", "refcocog"]
ReferSplit = Literal["train", "val", "test", "testA", "testB"]

#: Who divided each set as it is mostly reported; it is part of the file's name.
_DIVISIONS: Mapping[ReferName, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}

#: LLaVA-1.5's own words for the sentences of these sets.
PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."


class ReferDataset:
    """A split of one of the three sets; every sentence is a sample.

    The files lie as the refer toolkit wants them: ``folder/NAME/refs(DIVISION).p``,
    ``folder/NAME/instances.json`` and ``folder/images/mscoco/images/train2014``.

    Args:
        folder: the data folder.
        name: of the set.
        split: one that this set and this division of it have.
        division: ``unc``, ``umd`` or ``google``; by default the one that is mostly reported.
        per_image: at most so many sentences of each image, the first ones (the paper's authors
            take up to three); None for all.
        texts: how many sentences about an image guide together: consecutive ones share the set
            of them, as the questions of the authors' evaluation do.

    Raises DataError for files that are missing or broken and OptionsError for a split that the set
    does not have.
    """

    def __init__(
        self,
        folder: Path,
        name: ReferName,
        split: ReferSplit,
        *,
        division: str | None = None,
        per_image: int | None = None,
        texts: int = 1,
    ) -> None:
        if name not in get_args(ReferName):
            raise OptionsError(f"data set {name!r}; allowed: {', '.join(get_args(ReferName))}")
        for option, value in (("per_image", per_image), ("texts", texts)):
            if value is not None and value < 1:
                raise OptionsError(f"{option}={value}; allowed: a whole number from 1")
        self.name: str = name
        self.split: ReferSplit = split
        self._texts = texts
        file = folder / name / f"refs({division or _DIVISIONS[name]}).p"
        references = read_references(file)
        splits = sorted({reference.split for reference in references})
        if split not in splits:
            raise OptionsError(f"{file} has no split {split!r}; it has {', '.join(splits)}.")
        self._instances = read_instances(folder / name / "instances.json")
        self._check_numbers(references, file)
        self._image_folder = find_images(folder)
        own = (reference for reference in references if reference.split == split)
        self._by_image = _first_sentences(own, per_image)

    def __len__(self) -> int:
        return sum(map(len, self._by_image.values()))

    def __iter__(self) -> Iterator[Sample]:
        for number, sentences in self._by_image.items():
            image = self._open(number)
            for start in range(0, len(sentences), self._texts):
                group = sentences[start : start + self._texts]
                texts = tuple(dict.fromkeys(text for _, _, text in group))
                for reference, sentence, text in group:
                    box, mask = self._instances.region(reference)
                    yield Sample(
                        name=f"{self.name}-{reference.number}-{sentence}",
                        image=image,
                        prompt=PROMPT.format(text),
                        texts=texts,
                        kind="box",
                        box=box,
                        mask=mask,
                    )

    def _open(self, number: int) -> Image.Image:
        """An image, RGB. Raises DataError where it is missing or not of the size it should be."""
        described = self._instances.images[number]
        file = self._image_folder / described.name
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except FileNotFoundError:
            raise DataError(f"{file} is missing.") from None
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error}.") from None
        if image.size != (described.width, described.height):
            raise DataError(
                f"{file} has {image.width} x {image.height} pixels; "
                f"instances.json says {described.width} x {described.height}."
            )
        return image

    def _check_numbers(self, references: list[Reference], file: Path) -> None:
        """Raise DataError where a reference has no image or region in ``instances.json``."""
        for reference in references:
            known = self._instances
            if reference.image not in known.images or reference.annotation not in known.annotations:
                raise DataError(
                    f"{file}: reference {reference.number} is of image {reference.image} and "
                    f"annotation {reference.annotation}, which its instances.json does not have."
                )


_Sentence = tuple[Reference, int, str]


def _first_sentences(
    references: Iterator[Reference], per_image: int | None
) -> dict[int, list[_Sentence]]:
    """The sentences of each image, at most so many: its references' in turn, then each one's."""
    by_image: dict[int, list[_Sentence]] = {}
    for reference in references:
        found = by_image.setdefault(reference.image, [])
        found += [(reference, number, text) for number, text in reference.sentences]
    return {image: found[:per_image] for image, found in by_image.items()}

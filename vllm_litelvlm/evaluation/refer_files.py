"""The files of the refer format: who refers to what, and where that is in COCO's images."""

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.evaluation.samples import Box

#: Where the images may lie inside the data folder; the first is the refer toolkit's own place.
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")


class DataError(LiteLVLMError, ValueError):
    """A data set's file is missing or not what it should be; the message names it."""


@dataclass(frozen=True)
class Reference:
    """A region of an image and the sentences that people wrote to refer to it."""

    number: int
    image: int
    split: str
    annotation: int
    sentences: tuple[tuple[int, str], ...]  #: number and text of each


@dataclass(frozen=True)
class ImageFile:
    """One of COCO's images: its file's name, and its size in pixels."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Instances:
    """The images and regions of ``instances.json`` by their numbers."""

    images: Mapping[int, ImageFile]
    annotations: Mapping[int, Mapping[str, Any]]

    def region(self, reference: Reference) -> tuple[Box, NDArray[np.bool_]]:
        """The box of a reference's region in pixels, and its mask, bool [height, width].

        Polygons are filled and run lengths decoded by pycocotools. The box is the annotation's
        own; where it has none, the mask's.
        """
        image = self.images[reference.image]
        annotation = self.annotations[reference.annotation]
        encoded = _run_lengths(annotation["segmentation"], image)
        left, top, width, height = annotation.get("bbox") or coco_mask.toBbox(encoded).tolist()
        mask = coco_mask.decode(encoded).astype(np.bool_)
        return (left, top, left + width, top + height), mask


def _run_lengths(segmentation: Any, image: ImageFile) -> Any:
    """COCO's compressed run lengths of polygons, or of run lengths in either form."""
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, image.height, image.width)
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, image.height, image.width))


def read_references(file: Path) -> list[Reference]:
    """Every reference of a ``refs(...).p``, in the file's order.

    Such files are pickles of dictionaries, of Python 2 and of unknown origin; nothing in them is
    called. Raises DataError for a file that is missing or that holds anything else.
    """
    records = _unpickle(_existing(file))
    if not isinstance(records, list):
        raise DataError(f"{file} holds a {type(records).__name__}; a list of references is wanted.")
    try:
        return [_reference(record) for record in records]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is not in the refer format ({type(error).__name__}: {error})."
        ) from None


def _reference(record: Mapping[str, Any]) -> Reference:
    return Reference(
        number=int(record["ref_id"]),
        image=int(record["image_id"]),
        split=str(record["split"]),
        annotation=int(record["ann_id"]),
        sentences=tuple(
            (int(sentence["sent_id"]), str(sentence["sent"])) for sentence in record["sentences"]
        ),
    )


def read_instances(file: Path) -> Instances:
    """The images and annotations of an ``instances.json``.

    Raises DataError for a file that is missing or not in COCO's format.
    """
    try:
        content = json.loads(_existing(file).read_text(encoding="utf-8"))
        images = {
            int(image["id"]): ImageFile(image["file_name"], image["width"], image["height"])
            for image in content["images"]
        }
        annotations = {int(one["id"]): one for one in content["annotations"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is not in COCO's format ({type(error).__name__}: {error})."
        ) from None
    return Instances(images, annotations)


def find_images(folder: Path, places: Sequence[str] = IMAGE_FOLDERS) -> Path:
    """The folder of COCO's train2014 images below the data folder. Raises DataError for none."""
    for place in places:
        if (folder / place).is_dir():
            return folder / place
    raise DataError(f"{folder / places[0]} is missing: it should hold COCO's train2014 images.")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"{file} is missing.")
    return file


class _PlainUnpickler(pickle.Unpickler):
    """Makes containers, texts and numbers and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("builtins", "set"), ("builtins", "frozenset")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(file: Path) -> object:
    try:
        content: object = _PlainUnpickler(
            io.BytesIO(file.read_bytes()), encoding="utf-8", errors="replace"
        ).load()
    except Exception as error:  # a broken pickle may raise anything
        raise DataError(
            f"{file} cannot be read: {error}. Only containers, texts and numbers are allowed in it."
        ) from None
    return content

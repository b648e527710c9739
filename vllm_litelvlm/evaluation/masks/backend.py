"""The contract between evaluations and whatever answers them with masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: A picture, or the JPEG file of one.
Picture = Image.Image | Path


@dataclass(frozen=True, eq=False)
class MaskQuestion:
    """What one conversation asks about a picture, or about each frame of a part of a video.

    ``texts`` are its rounds in order, which guide one pruning together. ``options`` are those of
    ``mm_processor_kwargs["litelvlm"]``.
    """

    pictures: Sequence[Picture]
    texts: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MaskAnswer:
    """The masks of each picture, bool [expressions, height, width] of its own size.

    ``prompt_tokens`` counts what the language model's first layer gets, for a picture.
    """

    masks: Sequence[NDArray[np.bool_]]
    prompt_tokens: float


class MaskBackend(Protocol):
    """Answers questions with masks."""

    def answer(self, questions: Sequence[MaskQuestion]) -> Iterator[MaskAnswer]:
        """One answer a question, in order, each as soon as it is there.

        Raises OptionsError for options or expressions that are refused. The rest of the questions
        is dropped where the iterator is closed.
        """

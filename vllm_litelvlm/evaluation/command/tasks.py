"""Data sets with all that an evaluation needs of them: what is right, and what a guess is worth."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.boxes import FORM, parse_box, write_box
from vllm_litelvlm.evaluation.command.settings import Settings
from vllm_litelvlm.evaluation.samples import Box, Dataset, Sample
from vllm_litelvlm.evaluation.scenes.answers import (
    BOX_FORM,
    LEAST_IOU,
    iou,
    is_right,
    read_box,
)
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset, SceneSample
from vllm_litelvlm.evaluation.scenes.guesses import random_object_guess
from vllm_litelvlm.evaluation.scenes.wording import SPLITS
from vllm_litelvlm.vision.frame import shown

#: Tokens that an answer may have: boxes are some thirty in LLaVA-1.5's form, words few.
_BOX_TOKENS, _WORD_TOKENS = 48, 12


@dataclass(frozen=True)
class Judged:
    """What an answer is worth: 0 or 1, and for boxes the overlap with the right one, 0 to 1."""

    score: float
    iou: float | None = None


@dataclass(frozen=True)
class Task:
    """A data set, how its answers are judged, and an answer that does not read the question."""

    dataset: Dataset
    judge: Callable[[Sample, str], Judged]
    guess: Callable[[Sample], str]
    #: Whether an answer has the form in which boxes are read; and that form, in words.
    reads_box: Callable[[str], bool]
    box_form: str

    def max_tokens(self, sample: Sample) -> int:
        """How long its answer may be."""
        return _WORD_TOKENS if sample.box is None else _BOX_TOKENS


def load_task(settings: Settings) -> Task:
    """The data set that the settings name.

    Raises OptionsError for what it does not have, and DataError for files that are missing.
    """
    if settings.dataset == "scenes":
        return Task(
            load_scenes(settings, texts=settings.texts),
            _judge_scene,
            lambda sample: _guess_scene(sample, settings.seed),
            lambda answer: read_box(answer, 1, 1) is not None,
            BOX_FORM,
        )
    see = _Sight(settings)
    return Task(
        load_refer(settings),
        lambda sample, answer: _judge_box(sample, parse_box(answer, see(sample))),
        lambda sample: _guess_refer(sample, see(sample)),
        lambda answer: parse_box(answer, (0, 0, 1, 1)) is not None,
        FORM,
    )


def load_scenes(settings: Settings, **chosen: Any) -> SceneDataset:
    """The scenes that the settings name; ``chosen`` as :class:`SceneDataset` takes it."""
    if settings.split not in SPLITS:
        raise OptionsError(f"--split {settings.split}: scenes have {', '.join(SPLITS)}.")
    return SceneDataset(settings.split, settings.questions, **chosen)


def load_refer(settings: Settings) -> Dataset:
    """RefCOCO or one of its relatives."""
    # pycocotools is for these sets alone.
    from vllm_litelvlm.evaluation.refer import ReferDataset, ReferName, ReferSplit

    assert settings.dataset in get_args(ReferName)
    return ReferDataset(
        data_folder(settings),
        cast(ReferName, settings.dataset),
        cast(ReferSplit, settings.split),
        per_image=settings.per_image,
        texts=settings.texts,
    )


def data_folder(settings: Settings) -> Path:
    """Where the data set's files lie. Raises OptionsError where that was not said."""
    if settings.data is None:
        raise OptionsError(f"--dataset {settings.dataset} needs --data, the folder of its files.")
    return settings.data


def _judge_scene(sample: Sample, answer: str) -> Judged:
    if sample.box is None:
        return Judged(float(is_right(sample, answer)))
    return _judge_box(sample, read_box(answer, *sample.image.size))


class _Sight:
    """What of a sample's picture the model sees."""

    def __init__(self, settings: Settings) -> None:
        self._frame = settings.frame
        self._model = settings.model

    @cached_property
    def _processor(self) -> Any:
        """The model's; None where a server alone is known, which then crops as LLaVA-1.5 does."""
        if self._model is None:
            return None
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self._model)

    def __call__(self, sample: Sample) -> Box:
        return shown(sample.image.size, self._frame, self._processor)


def _judge_box(sample: Sample, box: Box | None) -> Judged:
    """Right is an overlap above a half; what is no box overlaps with nothing."""
    assert sample.box is not None
    overlap = 0.0 if box is None else iou(box, sample.box)
    return Judged(float(overlap > LEAST_IOU), overlap)


def _guess_scene(sample: Sample, seed: int) -> str:
    """What is asked for, of an object of the scene at random."""
    assert isinstance(sample, SceneSample)
    own = zlib.crc32(f"{seed} {sample.name}".encode())
    return random_object_guess(sample, np.random.default_rng(own))


def _guess_refer(sample: Sample, sight: Box) -> str:
    """The middle of the image, half as wide and as high."""
    width, height = sample.image.size
    return write_box((width / 4, height / 4, 3 * width / 4, 3 * height / 4), sight)

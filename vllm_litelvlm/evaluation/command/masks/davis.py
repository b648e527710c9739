"""Asks every condition for the masks of Ref-DAVIS17, and judges them video by video."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np
from rich.console import Console

from vllm_litelvlm.evaluation.command.arguments import MOST_DRAWN
from vllm_litelvlm.evaluation.command.asking import rotated
from vllm_litelvlm.evaluation.command.conditions import Condition
from vllm_litelvlm.evaluation.command.masks.opening import Opened
from vllm_litelvlm.evaluation.command.masks.progress import Bar, progress_bar
from vllm_litelvlm.evaluation.command.masks.record import VideoMasked, VideoRecord, decoded, encoded
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.masks.sheet import Shown
from vllm_litelvlm.evaluation.command.masks.video_questions import ask_parts, parts
from vllm_litelvlm.evaluation.command.tasks import data_folder
from vllm_litelvlm.evaluation.masks.davis import Annotator, DavisVideo, RefDavis
from vllm_litelvlm.evaluation.masks.judging import Similarity
from vllm_litelvlm.evaluation.masks.ref_davis import judge_as_published, judge_expressions
from vllm_litelvlm.evaluation.masks.videos import open_picture

#: A video by annotator: the same frames, with the expressions of each.
Annotated = Mapping[str, DavisVideo]


def load_davis(settings: MaskSettings) -> list[Annotated]:
    """The videos of the split. Raises DataError for files that are missing or broken."""
    folder = data_folder(settings)
    by_annotator = [
        RefDavis(folder, cast(Annotator, annotator), settings.split).videos
        for annotator in settings.annotators
    ]
    videos: list[Annotated] = [
        dict(zip(settings.annotators, some, strict=True))
        for some in zip(*by_annotator, strict=True)
    ]
    return videos[: settings.videos]


@dataclass(frozen=True)
class DavisAsking:
    """Asks what ``record`` does not hold, and writes it down.

    Args:
        settings: what is asked.
        videos: of the data set.
        opened: answers.
        record: of this evaluation.
        console: for the progress bar.
    """

    settings: MaskSettings
    videos: Sequence[Annotated]
    opened: Opened
    record: VideoRecord
    console: Console

    def go(self) -> list[Condition]:
        """Video by video, for SAM to know its frames; returns the conditions."""
        conditions = self.opened.conditions(self.settings)
        total = sum(_masks(video) for one in self.videos for video in one.values())
        with progress_bar(self.console, "masks", total * len(conditions)) as bar:
            for number, annotated in enumerate(self.videos):
                for condition in rotated(conditions, number):
                    for annotator, video in annotated.items():
                        bar.tell(f"{video.name} {condition.name}")
                        if self.record.known((condition.name, annotator, video.name)):
                            bar.advance(_masks(video))
                        else:
                            line = self._ask(condition, annotator, video, bar, number < MOST_DRAWN)
                            self.record.add(line)
        return conditions

    def _ask(
        self, condition: Condition, annotator: str, video: DavisVideo, bar: Bar, drawn: bool
    ) -> VideoMasked:
        began = time.perf_counter()
        width, height = video.size()
        # [frames, expressions, height, width]
        predicted = np.zeros((len(video.frames), len(video.expressions), height, width), np.bool_)
        tokens = []
        asked = list(parts(self.settings, video))
        for part, answer in ask_parts(self.settings, condition, self.opened, asked):
            predicted[np.ix_(part.frames, part.expressions)] = np.stack(answer.masks)
            tokens.append(answer.prompt_tokens)
            bar.advance(part.masks)
        took = time.perf_counter() - began
        targets = [one.target for one in video.expressions]
        alone = len(set(targets)) == len(targets)
        return VideoMasked(
            condition=condition.name,
            annotator=annotator,
            video=video.name,
            expressions=_pairs(judge_expressions(video, predicted)),
            published=_pairs(judge_as_published(video, predicted)) if alone else None,
            prompt_tokens=float(np.mean(tokens)),
            all_tokens=self.opened.all_tokens,
            frames=len(video.frames),
            took=took,
            masks=encoded(list(predicted[_middle(video)])) if drawn else None,
        )


def _middle(video: DavisVideo) -> int:
    """The place of the frame that is drawn."""
    return len(video.frames) // 2


def _masks(video: DavisVideo) -> int:
    return len(video.frames) * len(video.expressions)


def _pairs(found: Iterable[Similarity]) -> tuple[tuple[float, float], ...]:
    return tuple((one.j, one.f) for one in found)


def shown(settings: MaskSettings, videos: Sequence[Annotated], record: VideoRecord) -> list[Shown]:
    """One expression about each of the first videos, by another annotator each time."""
    masks = {line.key: line.masks for line in record.answers}
    names = dict.fromkeys(line.condition for line in record.answers)
    found = []
    for number, annotated in enumerate(videos[: settings.drawn]):
        annotator = settings.annotators[number % len(settings.annotators)]
        video = annotated[annotator]
        place = number % len(video.expressions)
        expression = video.expressions[place]
        truth = next(islice(video.truth(), _middle(video), None)).masks[
            (expression.target or 1) - 1
        ]
        predicted = {
            name: decoded(kept[place])
            for name in names
            if (kept := masks.get((name, annotator, video.name))) is not None
        }
        picture = open_picture(video.frame_file(video.frames[_middle(video)]))
        found.append(Shown(picture, settings.asked(expression.text), truth, predicted))
    return found

"""Writes the masks of a benchmark's validation videos as its server takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.command.conditions import Condition, grid
from vllm_litelvlm.evaluation.command.masks.names import file_name
from vllm_litelvlm.evaluation.command.masks.opening import Opened
from vllm_litelvlm.evaluation.command.masks.progress import Bar, progress_bar
from vllm_litelvlm.evaluation.command.masks.record import Begun, SubmissionRecord
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.masks.video_questions import VideoPart, ask_parts, parts
from vllm_litelvlm.evaluation.command.settings import EvaluationError
from vllm_litelvlm.evaluation.command.tasks import data_folder
from vllm_litelvlm.evaluation.masks.submissions import ServerDataset, Submission


@dataclass(frozen=True)
class Packed:
    """A condition's submission: how many masks it has, and its archive."""

    condition: str
    masks: int
    archive: Path


def load_submitted(settings: MaskSettings) -> ServerDataset:
    """The benchmark's validation split. Raises DataError for files that are missing or broken."""
    if settings.split != "val":
        raise OptionsError(f"--split {settings.split}: {settings.dataset} has val alone.")
    return ServerDataset(data_folder(settings), settings.dataset)


def folder_of(settings: MaskSettings, condition: Condition) -> Path:
    """Where the masks of a condition lie."""
    return settings.output / file_name(condition.name)


@dataclass(frozen=True)
class Submitting:
    """Asks for the masks that are not there yet, and packs them.

    Args:
        settings: what is asked.
        dataset: of videos.
        opened: answers.
        record: of this submission.
        console: for the progress bars.
    """

    settings: MaskSettings
    dataset: ServerDataset
    opened: Opened
    record: SubmissionRecord
    console: Console

    def go(self) -> list[Packed]:
        """A submission a condition."""
        conditions = self.opened.conditions(self.settings)
        if not self.record.answers:
            self.record.add(Begun(self.opened.all_tokens))
        masks = sum(len(video.expressions) * len(video.frames) for video in self.dataset)
        with progress_bar(self.console, "masks", masks * len(conditions)) as bar:
            for video in self.dataset:
                asked = list(parts(self.settings, video))
                for condition in conditions:
                    bar.tell(f"{video.name} {condition.name}")
                    self._ask(condition, asked, bar)
        return [self._pack(condition, masks) for condition in conditions]

    def _ask(self, condition: Condition, asked: Sequence[VideoPart], bar: Bar) -> None:
        submission = self._submission(condition)
        missing = []
        for part in asked:
            if all(path.is_file() for path in _files(submission, part)):
                bar.advance(part.masks)
            else:
                missing.append(part)
        for part, answer in ask_parts(self.settings, condition, self.opened, missing):
            for frame, masks in zip(part.frames, answer.masks, strict=True):
                for place, mask in zip(part.expressions, masks, strict=True):
                    video = part.video
                    submission.write(video, video.expressions[place], video.frames[frame], mask)
            bar.advance(part.masks)

    def _pack(self, condition: Condition, masks: int) -> Packed:
        folder = folder_of(self.settings, condition)
        archive = folder.with_name(f"{folder.name}.zip")
        with progress_bar(self.console, "masks", masks) as bar:
            bar.tell(f"packing {archive.name}")
            self._submission(condition).pack(archive, lambda *_: bar.advance(1))
        return Packed(condition.name, masks, archive)

    def _submission(self, condition: Condition) -> Submission:
        return Submission(folder_of(self.settings, condition), self.dataset)


def _files(submission: Submission, part: VideoPart) -> list[Path]:
    video = part.video
    return [
        submission.file(video, video.expressions[place], video.frames[frame])
        for place in part.expressions
        for frame in part.frames
    ]


def check_empty(settings: MaskSettings) -> None:
    """Raise EvaluationError where masks lie that would be taken for this run's."""
    for condition in grid(settings.methods, settings.budgets, None):
        folder = folder_of(settings, condition)
        if folder.exists():
            raise EvaluationError(
                f"{folder} has masks already: --resume goes on from them; to begin anew, delete it "
                "or name another --output."
            )

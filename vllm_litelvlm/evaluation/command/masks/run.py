"""``litelvlm evaluate --task masks``, from settings to files."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from rich.console import Console

from vllm_litelvlm.evaluation.command.arguments import IMAGES, JUDGED_VIDEOS
from vllm_litelvlm.evaluation.command.conditions import Condition
from vllm_litelvlm.evaluation.command.masks import (
    davis,
    images,
    record,
    report,
    submitting,
    summary,
)
from vllm_litelvlm.evaluation.command.masks.opening import Opened, open_masks
from vllm_litelvlm.evaluation.command.masks.plot import Panel, image_panels, plot, video_panels
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.masks.sheet import Shown, draw_sheets
from vllm_litelvlm.evaluation.command.opening import Serve
from vllm_litelvlm.evaluation.command.record import NAME, Journal
from vllm_litelvlm.evaluation.command.settings import EvaluationError

_SHEETS = "contact-sheets"

Record = TypeVar("Record", bound=Journal[Any])


def evaluate_masks(
    chosen: argparse.Namespace, serve: Serve, command: str, console: Console
) -> None:
    """Ask for the masks that are not there yet, then write and print what they are worth.

    Raises OptionsError for settings that cannot be, DataError for a data set's files and
    EvaluationError where the masks cannot be had.
    """
    settings = MaskSettings.of(chosen)
    _check_libraries(settings)
    run = {**dict.fromkeys(IMAGES, _images), **dict.fromkeys(JUDGED_VIDEOS, _videos)}
    run.get(settings.dataset, _submission)(settings, chosen.resume, serve, command, console)


def _check_libraries(settings: MaskSettings) -> None:
    needed = {"matplotlib": "matplotlib"}
    if settings.dataset in JUDGED_VIDEOS:
        needed["cv2"] = "opencv-python-headless"
    for module, library in needed.items():
        if find_spec(module) is None:
            raise EvaluationError(
                f"the evaluation needs {library}; install it: pip install 'vllm-litelvlm[evaluate]'"
            )


def _images(
    settings: MaskSettings, resume: bool, serve: Serve, command: str, console: Console
) -> None:
    dataset = images.load_images(settings)
    kept = _record(record.ImageRecord, settings, resume)
    with _opened(settings, kept, serve, console) as opened:
        conditions = images.ImageAsking(settings, dataset, opened, kept, console).go()
    rows = summary.summarise_images(conditions, kept.answers, settings.protocols)
    tables = report.image_tables(rows)
    report.write(settings, command, tables, report.image_notes(settings), rows)
    drawn = _draw(
        settings, conditions, image_panels(rows), lambda: images.shown(settings, dataset, kept)
    )
    _tell(settings, tables, drawn, console)


def _videos(
    settings: MaskSettings, resume: bool, serve: Serve, command: str, console: Console
) -> None:
    videos = davis.load_davis(settings)
    kept = _record(record.VideoRecord, settings, resume)
    with _opened(settings, kept, serve, console) as opened:
        conditions = davis.DavisAsking(settings, videos, opened, kept, console).go()
    rows = summary.summarise_videos(conditions, kept.answers, settings.annotators)
    tables = report.video_tables(rows)
    report.write(settings, command, tables, report.video_notes(settings, rows), rows)
    drawn = _draw(
        settings, conditions, video_panels(rows), lambda: davis.shown(settings, videos, kept)
    )
    _tell(settings, tables, drawn, console)


def _submission(
    settings: MaskSettings, resume: bool, serve: Serve, command: str, console: Console
) -> None:
    dataset = submitting.load_submitted(settings)
    if not resume:
        submitting.check_empty(settings)
    kept = _record(record.SubmissionRecord, settings, resume)
    with _opened(settings, kept, serve, console) as opened:
        packed = submitting.Submitting(settings, dataset, opened, kept, console).go()
    tables = report.submission_table(packed)
    report.write(settings, command, tables, "", packed)
    _tell(settings, tables, [one.archive.name for one in packed], console)


def _record(kind: type[Record], settings: MaskSettings, resume: bool) -> Record:
    start = kind.resume if resume else kind.begin
    return start(settings.output, settings.identity())


def _opened(settings: MaskSettings, kept: Journal[Any], serve: Serve, console: Console) -> Opened:
    all_tokens = kept.answers[0].all_tokens if kept.answers else None
    return Opened(partial(open_masks, settings, serve, console), all_tokens)


def _draw(
    settings: MaskSettings,
    conditions: Sequence[Condition],
    panels: Sequence[Sequence[Panel]],
    shown: Callable[[], Sequence[Shown]],
) -> list[str]:
    """Draw the plot, where there is a budget, and contact sheets; returns the files' names."""
    title = f"{settings.dataset} {settings.split}, {settings.answerer}"
    drawn = []
    if any(one.budget is not None for one in conditions):
        plot(panels, settings.output / "plot.png", title)
        drawn.append("plot.png")
    if settings.drawn:
        draw_sheets(shown(), conditions, settings.output / _SHEETS, title)
        drawn.append(f"{_SHEETS}/")
    return drawn


def _tell(settings: MaskSettings, tables: str, files: Sequence[str], console: Console) -> None:
    print(tables)
    names = ", ".join([NAME, "results.json", "table.md", *files])
    console.print(f"Written to {settings.output}: {names}", markup=False, highlight=False)

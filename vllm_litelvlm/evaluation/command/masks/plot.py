"""Figures of masks over budget, a line a method, beside the level of all tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, CHANCE
from vllm_litelvlm.evaluation.command.masks.summary import ALL_ANNOTATORS, ImageRow, VideoRow
from vllm_litelvlm.evaluation.command.plot import COLOURS, MARKERS, PLAIN, place_legend

#: The threshold whose precision is drawn.
_FOUND = 0.5
#: Of the range of values, what is left free above and below.
_MARGIN = 0.12
#: The same of budgets, as a factor: of one alone, a logarithmic axis has no range.
_BESIDE = 1.25


@dataclass(frozen=True)
class Panel:
    """One figure under one protocol: by method and budget, None for all tokens.

    ``unit`` is what all is; more may be drawn of percentages alone.
    """

    title: str
    name: str
    figures: Mapping[tuple[str, int | None], Estimate]
    unit: int = 1


def image_panels(rows: Sequence[ImageRow]) -> list[list[Panel]]:
    """A line a protocol."""
    lines = []
    for some in _groups(rows):
        figures = {
            "cIoU": {_place(row): row.figures.ciou for row in some},
            "gIoU": {_place(row): row.figures.giou for row in some},
            f"P@{_FOUND}": {_place(row): row.figures.precision[_FOUND] for row in some},
        }
        title = _title(some)
        line = [Panel(title, name, found) for name, found in figures.items()]
        lines.append([*line, *_shares(title, some)])
    return lines


def _groups(rows: Sequence[ImageRow]) -> list[list[ImageRow]]:
    protocols = dict.fromkeys(row.protocol for row in rows)
    return [[row for row in rows if row.protocol == protocol] for protocol in protocols]


def _title(rows: Sequence[ImageRow]) -> str:
    told = {"authors": "three an image", "all": "all"}[rows[0].protocol]
    return f"{told} ({rows[0].figures.expressions} expressions)"


def video_panels(rows: Sequence[VideoRow]) -> list[list[Panel]]:
    """A line a way of judging, of all annotators."""
    lines = []
    for way in dict.fromkeys(row.way for row in rows):
        some = [row for row in rows if (row.way, row.annotator) == (way, ALL_ANNOTATORS)]
        figures = {
            "J&F": {_place(row): row.figures.j_and_f for row in some},
            "J": {_place(row): row.figures.j for row in some},
            "F": {_place(row): row.figures.f for row in some},
        }
        line = [Panel(way, name, found) for name, found in figures.items()]
        lines.append([*line, *_shares(way, some)])
    return lines


def _shares(title: str, rows: Sequence[ImageRow] | Sequence[VideoRow]) -> list[Panel]:
    """How much of the all-token figure is kept, if there is any."""
    shares = {_place(row): row.relative for row in rows if row.relative is not None}
    return [Panel(title, "Rel. (%)", shares, unit=100)] if shares else []


def _place(row: ImageRow | VideoRow) -> tuple[str, int | None]:
    return row.label, row.budget


def plot(panels: Sequence[Sequence[Panel]], path: Path, title: str) -> None:
    """Draw lines of panels; error bars and the band are one standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for label, _ in panels[0][0].figures))
    columns = max(map(len, panels))
    below = 0.25 * math.ceil(len(labels) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * len(panels) + 0.9 + below), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), columns, squeeze=False, sharex=True)
    for line, shown in zip(panels, axes, strict=True):
        for panel, one in zip(line, shown, strict=False):
            _draw(one, panel, labels)
        for one in shown[len(line) :]:
            one.set_visible(False)
    place_legend(figure, columns)
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def _draw(axes: Any, panel: Panel, labels: Sequence[str]) -> None:
    """Budgets are as far apart as their logarithms."""
    whole = panel.figures[ALL_TOKENS, None]
    error = whole.standard_error or 0.0
    axes.axhspan(whole.mean - error, whole.mean + error, color=PLAIN, alpha=0.15, linewidth=0)
    axes.axhline(whole.mean, color=PLAIN, linestyle="--", linewidth=1, label="all tokens")
    methods = [label for label in labels if label != ALL_TOKENS]
    chance = [label for label in methods if label.partition(" ")[0] == CHANCE]
    for number, label in enumerate(one for one in methods if one not in chance):
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        _line(axes, panel, label, COLOURS[number % len(COLOURS)], marker)
    for label, marker in zip(chance, MARKERS, strict=False):
        _line(axes, panel, label, PLAIN, marker)
    budgets = sorted({budget for _, budget in panel.figures if budget is not None})
    axes.set_xscale("log")
    axes.set_xlim(budgets[0] / _BESIDE, budgets[-1] * _BESIDE)
    axes.set_xticks(budgets, [str(budget) for budget in budgets], fontsize="small", rotation=60)
    axes.minorticks_off()
    axes.set_ylim(*_limits(panel))
    axes.set_xlabel("visual tokens", fontsize="small")
    axes.set_ylabel(panel.name, fontsize="small")
    axes.tick_params(axis="y", labelsize="small")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(panel.title, fontsize="medium")


def _line(axes: Any, panel: Panel, label: str, colour: str, marker: str) -> None:
    """A method's figures."""
    some = sorted(
        (budget, figure)
        for (name, budget), figure in panel.figures.items()
        if name == label and budget is not None
    )
    axes.errorbar(
        [budget for budget, _ in some],
        [figure.mean for _, figure in some],
        yerr=[figure.standard_error or 0.0 for _, figure in some],
        label=label,
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.3,
        capsize=3,
    )


def _limits(panel: Panel) -> tuple[float, float]:
    """Of all that is drawn; a range of at least a tenth of the unit."""
    low = min(one.mean - (one.standard_error or 0.0) for one in panel.figures.values())
    high = max(one.mean + (one.standard_error or 0.0) for one in panel.figures.values())
    margin = max(_MARGIN * (high - low), (0.1 * panel.unit - (high - low)) / 2)
    top = high + margin
    return max(0.0, low - margin), min(1.02, top) if panel.unit == 1 else top

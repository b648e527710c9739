"""Score over budget, a line a method: all kinds of question together, then each by itself."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_litelvlm.evaluation.command.asking import GUESS
from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, CHANCE
from vllm_litelvlm.evaluation.command.summary import ALL_KINDS, Row

COLOURS = ("#d94801", "#2171b5", "#238b45", "#6a51a3", "#a1d99b", "#fdae6b", "#9ecae1", "#cb9cd9")
MARKERS = ("o", "s", "^", "D")
PLAIN = "0.45"
_COLUMNS = 3


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw the panels; error bars are one standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row.kind for row in rows))
    kinds = kinds if len(kinds) > 2 else [ALL_KINDS]  # one kind is all kinds
    columns = min(_COLUMNS, len(kinds))
    lines = math.ceil(len(kinds) / columns)
    labels = list(dict.fromkeys(row.label for row in rows))
    below = 0.25 * math.ceil(len(labels) / columns)
    size = (max(5.2, 3.6 * columns), 3.1 * lines + 0.9 + below)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    for panel, kind in zip(panels, kinds, strict=False):
        _panel(panel, [row for row in rows if row.kind == kind])
    for panel in list(panels)[len(kinds) :]:
        panel.set_visible(False)
    place_legend(figure, columns)
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def place_legend(figure: Any, columns: int) -> None:
    """The lines of the first panel, below all of them."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        fontsize="small",
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    """One kind of question; the budgets are as far apart as their logarithms."""
    budgets = sorted({row.budget for row in rows if row.budget is not None})
    labels = list(dict.fromkeys(row.label for row in rows))
    for number, label in enumerate(name for name in labels if name not in (ALL_TOKENS, GUESS)):
        _line(axes, [row for row in rows if row.label == label], number)
    styles = {ALL_TOKENS: ("all tokens", "--"), GUESS: ("guess", ":")}
    for row in rows:
        if row.label in styles:
            name, style = styles[row.label]
            axes.axhline(row.score.value, color=PLAIN, linestyle=style, linewidth=1, label=name)
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(budget) for budget in budgets], fontsize="small", rotation=60)
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("visual tokens", fontsize="small")
    axes.set_ylabel("score", fontsize="small")
    axes.label_outer()
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(f"{rows[0].kind} ({rows[0].questions} questions)", fontsize="medium")


def _line(axes: Any, rows: Sequence[Row], number: int) -> None:
    """A method's scores; the random one's is grey."""
    some = sorted((row for row in rows if row.budget is not None), key=lambda row: row.budget or 0)
    grey = rows[0].label == CHANCE
    axes.errorbar(
        [row.budget for row in some],
        [row.score.value for row in some],
        yerr=[row.score.standard_error or 0.0 for row in some],
        label=rows[0].label,
        color=PLAIN if grey else COLOURS[(number - 1) % len(COLOURS)],
        marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
        markersize=4,
        linewidth=1.3,
        capsize=3,
    )

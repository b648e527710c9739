"""Both ratios to stock as a plot, one for each workload; for chats the time of every turn too."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Estimate, Row
from benchmarks.settings import Case
from benchmarks.workload import WORKLOADS

_COLOURS = ("#d94801", "#2171b5", "#238b45", "#6a51a3", "#a1d99b", "#fdae6b", "#9ecae1", "#cb9cd9")
_STOCK = "0.45"
_RATIOS = {
    "throughput_ratio": "Throughput ÷ stock (higher is better)",
    "first_token_ratio": "Time to first token ÷ stock (lower is better)",
}


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw the rows of one workload: over its cases where there are several, else in a list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row.case for row in rows))
    pruned = [row for row in rows if not row.is_stock]
    names = list(dict.fromkeys(row.condition for row in pruned))
    turns = len(cases) == 1 and len(rows[0].first_token_by_turn) > 1
    panels = 3 if turns else 2
    height = (4.4 if panels == 3 or len(cases) > 1 else 2.4 + 0.32 * len(names)) + 0.12 * len(names)
    figure = Figure(figsize=(4.6 * panels + 1.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for panel, (of, label) in zip(axes, _RATIOS.items(), strict=False):
        panel.set_title(label, fontsize="medium")
        if len(cases) > 1:
            _over_cases(panel, pruned, names, cases, of)
        else:
            _listed(panel, pruned, of, named=panel is axes[0])
    if turns:
        _over_turns(axes[-1], rows)
    _legend(figure, axes)
    heading = WORKLOADS[cases[0].workload].title
    figure.suptitle(f"{heading}\n{title}", fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def _legend(figure, axes) -> None:
    """Name every line once."""
    handles = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(handles.values(), handles.keys(), **place)


def _over_cases(axes, rows: list[Row], names: list[str], cases: list[Case], of: str) -> None:
    """Points, joined by lines where the cases differ in one thing only."""
    labels = [case.label(cases) for case in cases]
    fields = ("size", "concurrency", "rate")
    varied = [name for name in fields if len({getattr(case, name) for case in cases}) > 1]
    style = "-" if len(varied) == 1 else "none"
    apart = 0.05 if len(varied) > 1 else 0.0
    axes.axhline(1, color=_STOCK, linestyle="--", linewidth=1, label="stock vLLM")
    highest = 1.0
    for number, name in enumerate(names):
        ratios: list[Estimate] = [getattr(row, of) for row in rows if row.condition == name]
        means = [ratio.mean for ratio in ratios]
        errors = [ratio.standard_error or 0.0 for ratio in ratios]
        axes.errorbar(
            [place + apart * (number - len(names) / 2) for place in range(len(means))],
            means,
            yerr=errors,
            label=name,
            linestyle=style,
            marker="o",
            capsize=4,
            color=_COLOURS[number % len(_COLOURS)],
        )
        highest = max([highest, *map(sum, zip(means, errors, strict=True))])
    turned = {"rotation": 20, "ha": "right"} if len(labels) > 4 or "," in labels[0] else {}
    axes.set_xticks(range(len(labels)), labels, fontsize="small", **turned)
    axes.set_xlim(-0.3, len(labels) - 0.7)
    axes.set_ylim(0, 1.1 * highest)
    axes.grid(axis="y", alpha=0.3)


def _listed(axes, rows: list[Row], of: str, named: bool) -> None:
    axes.axvline(1, color=_STOCK, linestyle="--", linewidth=1, label="stock vLLM")
    highest = 1.0
    for place, row in enumerate(rows):
        ratio: Estimate = getattr(row, of)
        error = ratio.standard_error or 0.0
        colour = _COLOURS[place % len(_COLOURS)]
        axes.errorbar([ratio.mean], [place], xerr=[error], marker="o", capsize=4, color=colour)
        beside = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{ratio.mean:.2f}", (ratio.mean, place), fontsize="small", **beside)
        highest = max(highest, ratio.mean + error)
    axes.set_yticks(range(len(rows)), [row.condition for row in rows] if named else [])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlim(0, 1.1 * highest)
    axes.grid(axis="x", alpha=0.3)


def _over_turns(axes, rows: Sequence[Row]) -> None:
    """Mean seconds to the first token of each turn; the colours are those of the list."""
    for number, row in enumerate(rows):
        times = row.first_token_by_turn
        style = {"color": _STOCK, "linestyle": "--"} if row.is_stock else {}
        colour = {"color": _COLOURS[(number - 1) % len(_COLOURS)]} if not style else {}
        turns = range(1, len(times) + 1)
        axes.plot(turns, times, marker="o", label=row.condition, **style, **colour)
    axes.set_xticks(range(1, len(rows[0].first_token_by_turn) + 1))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("turn")
    axes.set_title("Mean time to first token (s)", fontsize="medium")
    axes.grid(alpha=0.3)

"""Throughput and time to first token over the number of clients."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.journal import ServingBlock
from benchmarks.gpu.settings import Group

_COLOURS = ("0.45", "#9ecae1", "#2171b5", "#d94801", "#238b45", "#6a51a3")


def plot(group: Group, blocks: Sequence[ServingBlock], path: Path, title: str) -> None:
    """Draw one group, a line for each condition; means over rounds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    rates, times = figure.subplots(1, 2)
    for condition, colour in zip(group.conditions, _COLOURS, strict=False):
        own = [b for b in blocks if (b.group, b.condition) == (group.name, condition.name)]
        clients = sorted({block.clients for block in own})
        at = [[block for block in own if block.clients == number] for number in clients]
        style = {"color": colour, "marker": "o", "label": condition.name}
        rates.plot(clients, [_mean([b.requests_per_second for b in some]) for some in at], **style)
        firsts = [[1000 * time for b in some for time in b.first_tokens] for some in at]
        times.plot(clients, [_mean(some) for some in firsts], **style)
    for axes, label in ((rates, "Requests/s"), (times, "Mean time to first token (ms)")):
        axes.set_title(label, fontsize="medium")
        axes.set_xlabel("Requests at a time")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{group.name}\n{title}", fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)

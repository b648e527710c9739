"""Processor time a request as bars, one a front end, number of texts and server."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import API_SERVER, ENGINE_CORE, WORKER

if TYPE_CHECKING:
    from benchmarks.host.report import Row

_COLOURS = {API_SERVER: "#4292c6", ENGINE_CORE: "#fdae6b", WORKER: "#d94801"}


def plot(rows: "Sequence[Row]", path: Path, title: str) -> None:
    """Draw each server's roles side by side in one bar, with its whole behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((row.front, row.texts) for row in rows))
    places = [number + 0.7 * cases.index((row.front, row.texts)) for number, row in enumerate(rows)]
    figure = Figure(figsize=(10, 1.8 + 0.34 * (1 + max(places))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for role, colour in _COLOURS.items():
        widths = [row.milliseconds[role].mean for row in rows]
        axes.barh(places, widths, left=left, height=0.8, color=colour, label=role)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, end in zip(places, left, strict=True):
        text, corner = f"{end:.2f} ms", (end, place)
        axes.annotate(text, corner, xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [_label(row) for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_xlabel("Processor milliseconds a request")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(_COLOURS), frameon=False)
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def _label(row: "Row") -> str:
    images = "every image new" if row.texts == 1 else f"{row.texts} texts an image"
    return f"{row.condition}: {images}, {row.front}"

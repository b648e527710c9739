"""Selection times as a plot: a panel for each number of patches, a line for each method."""

from pathlib import Path

from benchmarks.selection_report import BAR, REFERENCE, Spread, Summary, bar_images
from benchmarks.selection_rounds import Settings

_COLOURS = ("#9ecae1", "#4292c6", "#08306b")
_TOTAL = "#d94801"


def plot(settings: Settings, summary: Summary, path: Path, title: str) -> None:
    """Draw every method's times on a logarithmic scale, with quartiles.

    Where the tower was measured, its share that the bar allows, and guidance and selection
    together, stand beside.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    patches = sorted({size.patches for size in settings.sizes})
    methods = _by_time(settings, summary, patches[-1])
    height = 1.9 + 0.34 * len(methods)
    figure = Figure(figsize=(2.2 + 4.6 * len(patches), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(patches), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, patches, strict=True):
        _panel(axes, settings, summary, methods, count)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    panels[0].get_yticklabels()[methods.index(REFERENCE)].set_fontweight("bold")
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def _by_time(settings: Settings, summary: Summary, patches: int) -> list[str]:
    """The fastest first; those that were not measured last."""

    def seconds(method: str) -> float:
        selection = summary.row(method, patches, bar_images(settings)).selection
        return float("inf") if selection is None else selection.median

    return sorted(settings.methods, key=seconds)


def _panel(axes, settings: Settings, summary: Summary, methods: list[str], patches: int) -> None:
    batches = sorted({size.images for size in settings.sizes})
    step = min(0.24, 0.7 / len(batches))
    for number, images in enumerate(batches):
        rows = [summary.row(method, patches, images) for method in methods]
        offset = step * (number - (len(batches) - 1) / 2)
        colour = _COLOURS[number * (len(_COLOURS) - 1) // max(1, len(batches) - 1)]
        label = f"selection, batch {images}"
        points = [(place + offset, row.selection) for place, row in enumerate(rows)]
        _points(axes, points, label, color=colour, marker="o")
    bar = bar_images(settings)
    for size, tower in summary.towers.items():
        if (size.patches, size.images) == (patches, bar):
            allowed = 1000 * BAR * tower.median
            label = f"{BAR:.0%} of the vision tower's time, batch {bar}"
            axes.axvline(allowed, color=_TOTAL, linestyle="--", linewidth=1.2, label=label)
            rows = [summary.row(method, patches, bar) for method in methods]
            both = [
                (place, _times(row.tower_share, tower.median)) for place, row in enumerate(rows)
            ]
            label = f"guidance and selection, batch {bar}"
            _points(axes, both, label, color=_TOTAL, marker="D", markerfacecolor="none")
    place = methods.index(REFERENCE)
    axes.axhspan(place - 0.5, place + 0.5, color="#fff3bf", zorder=0)
    axes.set_xscale("log")
    axes.grid(axis="x", which="major", alpha=0.35)
    axes.grid(axis="x", which="minor", alpha=0.12)
    axes.set_xlabel("ms")
    budget = next(size.budget for size in settings.sizes if size.patches == patches)
    axes.set_title(f"{patches} patch tokens, {budget} kept", fontsize="medium")


def _times(share: Spread | None, whole: float) -> Spread | None:
    """A share of ``whole`` as seconds."""
    if share is None:
        return None
    return Spread(share.median * whole, share.lower * whole, share.upper * whole)


def _points(axes, points: list[tuple[float, Spread | None]], label: str, **style: str) -> None:
    measured = [(place, spread) for place, spread in points if spread is not None]
    if not measured:
        return
    axes.errorbar(
        [1000 * spread.median for _, spread in measured],
        [place for place, _ in measured],
        xerr=[
            [1000 * (spread.median - spread.lower) for _, spread in measured],
            [1000 * (spread.upper - spread.median) for _, spread in measured],
        ],
        linestyle="none",
        markersize=5,
        elinewidth=1,
        label=label,
        **style,
    )

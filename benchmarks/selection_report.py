"""Statistics of measured selection times, as tables and a plot."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from benchmarks.machine import Machine, package_versions
from benchmarks.report import percentile
from benchmarks.selection_inputs import TEXT_TOKENS, Size
from benchmarks.selection_rounds import Block, Settings
from vllm_litelvlm.pruning.registry import pruner_class

#: The method that the others are set beside.
REFERENCE = "litelvlm"
#: A cheap method's guidance and selection cost at most this part of the tower's time ...
BAR = 0.05
#: ... on a batch of so many images.
BAR_IMAGES = 8


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(*(percentile(values, share) for share in (0.5, 0.25, 0.75)))

    def show(self, scale: float = 1.0, unit: str = "") -> str:
        median, lower, upper = (_digits(scale * v) for v in (self.median, self.lower, self.upper))
        return f"{median}{unit} ({lower}–{upper})"


@dataclass(frozen=True)
class Row:
    """A method at a size; seconds and ratios, None where not measured.

    ``relative``: selection to the reference's in the same round. ``tower_share``: guidance and
    selection to the tower's time in the same round, ``new_texts``: embedding one new text an image
    besides, None for a method that reads none. ``tower_inside``: for a method inside the
    tower, the time of the tower with it to that of the tower alone.
    """

    method: str
    size: Size
    selection: Spread | None
    relative: Spread | None
    guidance: Spread | None
    tower_share: Spread | None
    new_texts: Spread | None
    tower_inside: Spread | None

    @property
    def above_bar(self) -> bool:
        return self.tower_share is not None and self.tower_share.median > BAR


@dataclass(frozen=True)
class Summary:
    """``towers``: seconds of the tower alone, at the sizes where it was measured."""

    rows: tuple[Row, ...]
    towers: Mapping[Size, Spread]

    def row(self, method: str, patches: int, images: int) -> Row:
        wanted = (method, patches, images)
        return next(r for r in self.rows if (r.method, r.size.patches, r.size.images) == wanted)


def bar_images(settings: Settings) -> int:
    """The batch whose share of the tower's time is told: that of the bar, where measured."""
    batches = {size.images for size in settings.sizes}
    return BAR_IMAGES if BAR_IMAGES in batches else max(batches)


def summarise(settings: Settings, blocks: Sequence[Block]) -> Summary:
    """One row a method and size."""
    rows, towers = [], {}
    for size in settings.sizes:
        here = [block for block in blocks if block.size == size]
        if tower := _spread(here, lambda block: block.seconds("tower", None)):
            towers[size] = tower
        rows += [_row(method, size, here) for method in settings.methods]
    return Summary(tuple(rows), towers)


def _row(method: str, size: Size, blocks: Sequence[Block]) -> Row:
    def ratio(part: float | None, whole: float | None) -> float | None:
        return None if part is None or whole is None else part / whole

    def cost(block: Block) -> float | None:
        selection = block.seconds("selection", method)
        return None if selection is None else selection + (block.seconds("guidance", method) or 0)

    def with_texts(block: Block) -> float | None:
        known, texts = cost(block), block.seconds("texts", None)
        reads = pruner_class(method).reads_text
        return known + texts if reads and known is not None and texts is not None else None

    def to_tower(block: Block, seconds: float | None) -> float | None:
        return ratio(seconds, block.seconds("tower", None))

    def to_reference(block: Block) -> float | None:
        return ratio(block.seconds("selection", method), block.seconds("selection", REFERENCE))

    return Row(
        method=method,
        size=size,
        selection=_spread(blocks, lambda block: block.seconds("selection", method)),
        relative=_spread(blocks, to_reference),
        guidance=_spread(blocks, lambda block: block.seconds("guidance", method)),
        tower_share=_spread(blocks, lambda block: to_tower(block, cost(block))),
        new_texts=_spread(blocks, lambda block: to_tower(block, with_texts(block))),
        tower_inside=_spread(blocks, lambda block: to_tower(block, block.seconds("tower", method))),
    )


def _spread(blocks: Sequence[Block], measure: Callable[[Block], float | None]) -> Spread | None:
    values = [value for block in blocks if (value := measure(block)) is not None]
    return Spread.of(values) if values else None


def markdown(settings: Settings, summary: Summary) -> str:
    """A table for each number of patches."""
    batches = sorted({size.images for size in settings.sizes})
    bar = bar_images(settings)
    tables = []
    for patches in sorted({size.patches for size in settings.sizes}):
        sizes = [size for size in settings.sizes if size.patches == patches]
        heads = [f"batch {images}, ms" for images in batches]
        heads.append(f"÷ {REFERENCE}, batch {bar}")
        guided = any(size in summary.towers for size in sizes)
        if guided:
            heads += [
                f"guidance, batch {bar}, ms",
                f"of the tower's time, batch {bar}",
                "with new texts",
            ]
        lines = [
            f"{patches} patch tokens, {sizes[0].budget} kept\n",
            "| method | " + " | ".join(heads) + " |",
            "| --- " + "| ---: " * len(heads) + "|",
        ]
        for method in settings.methods:
            row = summary.row(method, patches, bar)
            cells = [_shown(summary.row(method, patches, n).selection, 1000) for n in batches]
            cells.append("1" if method == REFERENCE else _shown(row.relative))
            if guided:
                share = _shown(row.tower_share, 100, "%")
                cells += [_shown(row.guidance, 1000), f"**{share}**" if row.above_bar else share]
                cells.append(_shown(row.new_texts, 100, "%"))
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _shown(spread: Spread | None, scale: float = 1.0, unit: str = "") -> str:
    return "–" if spread is None else spread.show(scale, unit)


def _digits(value: float) -> str:
    """At least two significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def notes(
    settings: Settings, blocks: Sequence[Block], summary: Summary, machine: Machine
) -> list[str]:
    """What a reader of the tables has to know, a sentence or two each."""
    bar = bar_images(settings)
    told = [
        f"Median over {settings.rounds} rounds (lower to upper quartile); in a round, the median "
        "call. Inputs are made up: one text an image, features of "
        f"{settings.geometry.vision_width} {settings.dtype} numbers, the rest float32.",
        "–: not measured.",
    ]
    for size, tower in summary.towers.items():
        if size.images == bar:
            told.append(
                "Of the tower's time: guidance and selection to the time of the vision tower "
                f"({settings.geometry.vision_layers - 1} layers, transformers, sdpa, "
                f"{settings.dtype}) in the same round, {tower.show(1000)} ms; bold is above "
                f"{BAR:.0%}. Guidance is what computes a method's signals from hidden states, "
                "text embeddings given (where a method reads projected tokens, that is the "
                "projector on all tokens too); with new texts: embedding one of "
                f"{TEXT_TOKENS} tokens an image besides."
            )
            told += _inside_notes(settings, summary, size)
    left_out = [f"{r.method} at {_place(r.size)}" for r in summary.rows if r.selection is None]
    if left_out:
        told.append(
            f"Left out, since estimated to take more than {settings.max_gib} GiB: "
            f"{', '.join(left_out)}."
        )
    others = [block.other_load for block in blocks]
    told.append(
        f"Other processes kept {statistics.fmean(others):.2f} cores busy, at most "
        f"{max(others):.2f} in one round at one size."
    )
    installed = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    told.append(
        f"Machine: {machine}; device {settings.device}, PyTorch's threads: {settings.threads}. "
        f"Versions: {installed}."
    )
    return told


def _inside_notes(settings: Settings, summary: Summary, size: Size) -> list[str]:
    told = []
    for method in settings.methods:
        row = summary.row(method, size.patches, size.images)
        if row.tower_inside is not None:
            told.append(
                f"{method} works inside the tower: its selection is timed in a tower whose blocks "
                "cost nothing, so it is matching and merging alone. The tower with it takes "
                f"{row.tower_inside.show(100, '%')} of the time of the tower alone."
            )
    return told


def _place(size: Size) -> str:
    return f"{size.images} x {size.patches}"


def write(
    settings: Settings,
    blocks: Sequence[Block],
    summary: Summary,
    machine: Machine,
    *,
    command: str,
) -> None:
    """Write ``results.json`` (with every call's time), ``table.md`` and ``plot.png``."""
    from benchmarks.selection_plot import plot

    folder = settings.output
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": package_versions(),
        "settings": asdict(settings),
        "summary": [{**asdict(row), "above_bar": row.above_bar} for row in summary.rows],
        "towers": [
            {"size": asdict(size), "seconds": asdict(tower)}
            for size, tower in summary.towers.items()
        ],
        "blocks": [asdict(block) for block in blocks],
    }
    (folder / "results.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    told = "\n".join(f"- {note}" for note in notes(settings, blocks, summary, machine))
    (folder / "table.md").write_text(f"{markdown(settings, summary)}\n\n{told}\n\n    {command}\n")
    plot(settings, summary, folder / "plot.png", f"{settings.dtype}; {machine}")

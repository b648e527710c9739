"""A breakdown as tables, JSON and a plot."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.breakdown_meter import PARTS
from benchmarks.breakdown_rounds import Request
from benchmarks.breakdown_settings import Settings
from benchmarks.machine import Machine, package_versions

_COLOURS = ("#bdbdbd", "#4292c6", "#d94801", "#fdae6b", "#9ecae1", "#238b45", "#a1d99b", "#636363")


@dataclass(frozen=True)
class Row:
    """A budget and state; medians over repetitions, in seconds.

    ``shares`` are of the sum of ``seconds``, which need not be ``total``, the median of totals.
    ``tower_share``: guidance and selection to the tower's time on a new image (cold, same budget)
    in the same repetition; None where nothing is pruned. ``calls``: see
    :class:`benchmarks.breakdown_meter.Times`, of the first repetition.
    """

    budget: int
    state: str
    pruned: bool
    prompt_tokens: int
    prefill_tokens: int
    seconds: dict[str, float]
    shares: dict[str, float]
    total: float
    first_token: float
    tower_share: float | None
    calls: dict[str, int]


def summarise(settings: Settings, requests: Sequence[Request]) -> list[Row]:
    """One row a budget and state, in the order of budgets from large to small."""
    states = list(dict.fromkeys(request.state for request in requests))
    rows = []
    for budget in settings.budgets:
        here = [request for request in requests if request.case.budget == budget]
        towers = {
            request.repetition: request.answer.times.seconds["vision tower"]
            for request in here
            if request.state == "cold"
        }
        for state in states:
            some = [request for request in here if request.state == state]
            rows.append(_row(some, towers, pruned=budget < settings.visual_tokens))
    return rows


def _row(requests: list[Request], towers: dict[int, float], pruned: bool) -> Row:
    first, times = requests[0], [request.answer.times for request in requests]
    seconds = {part: statistics.median(one.seconds[part] for one in times) for part in PARTS}
    whole = sum(seconds.values())
    costs = [
        (one.seconds["guidance"] + one.seconds["selection"]) / towers[request.repetition]
        for request, one in zip(requests, times, strict=True)
    ]
    return Row(
        budget=first.case.budget,
        state=first.state,
        pruned=pruned,
        prompt_tokens=first.answer.prompt_tokens,
        prefill_tokens=first.answer.times.prefill_tokens,
        seconds=seconds,
        shares={part: value / whole for part, value in seconds.items()},
        total=statistics.median(one.total for one in times),
        first_token=statistics.median(request.answer.first_token for request in requests),
        tower_share=statistics.median(costs) if pruned else None,
        calls=dict(first.answer.times.calls),
    )


def markdown(rows: Sequence[Row]) -> str:
    """Where the time goes, and what guidance and selection take beside the tower."""
    return f"{_parts_table(rows)}\n\n{_tower_table(rows)}"


def _parts_table(rows: Sequence[Row]) -> str:
    heads = ["budget", "request", *PARTS, "total"]
    lines = [
        "Milliseconds, and shares of a request:\n",
        "| " + " | ".join(heads) + " |",
        "| ---: | --- " + "| ---: " * (len(heads) - 2) + "|",
    ]
    for row in rows:
        parts = [f"{shown(row.seconds[part])} ({row.shares[part]:.1%})" for part in PARTS]
        cells = [str(row.budget), row.state, *parts, shown(row.total)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tower_table(rows: Sequence[Row]) -> str:
    pruned = [row for row in rows if row.tower_share is not None]
    states = list(dict.fromkeys(row.state for row in pruned))
    lines = [
        "Guidance and selection, of the time that the vision tower takes on a new image:\n",
        "| budget | " + " | ".join(states) + " |",
        "| ---: " + "| ---: " * len(states) + "|",
    ]
    for budget in dict.fromkeys(row.budget for row in pruned):
        shares = [f"{row.tower_share:.2%}" for row in pruned if row.budget == budget]
        lines.append(f"| {budget} | " + " | ".join(shares) + " |")
    return "\n".join(lines) if pruned else "Nothing was pruned."


def shown(seconds: float) -> str:
    """Milliseconds, with at least two significant digits."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_NOTES = (
    "Every moment of a request is in one part. Preprocessing: tokenizer, image processor, hashes, "
    "plan. Guidance: embedding the texts and scoring the patches, without the tower. Prefill and "
    "decode: the language model and its logits. Rest: scheduler, inputs, sampling, detokenizer.",
    "Medians over repetitions; shares are of the sum of the medians.",
    "cold: image and text are new. other text: the image was asked about before. repeated text: "
    "the text was asked about another image. both seen: each was, but not together. All of "
    "litelvlm's and vLLM's caches are on. Where nothing is pruned the text does not matter to "
    "vLLM's own caches, so an image that was seen is not encoded again, and full KV blocks "
    "before the text are not computed again.",
)


def notes(settings: Settings, requests: Sequence[Request], machine: Machine) -> list[str]:
    """What a reader of the tables has to know."""
    load = (
        f"Model: {settings.source.name}, bfloat16, eager. One request at a time, "
        f"{settings.output_tokens} output tokens, {settings.repetitions} repetitions."
    )
    return [*_NOTES, load, machine_note(machine, [request.other_load for request in requests])]


def machine_note(machine: Machine, other_loads: Sequence[float]) -> str:
    """Hardware, software, and how quiet it was."""
    installed = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    return (
        f"Machine: {machine}; PyTorch's threads: {torch.get_num_threads()}. Versions: {installed}. "
        f"Other processes kept {statistics.fmean(other_loads):.2f} cores busy, at most "
        f"{max(other_loads):.2f} in a repetition."
    )


def write(
    settings: Settings,
    requests: Sequence[Request],
    rows: Sequence[Row],
    machine: Machine,
    *,
    command: str,
) -> None:
    """Write ``results.json`` (with every request), ``table.md`` and ``plot.png``."""
    folder = settings.output
    result = {
        "settings": asdict(settings),
        "summary": [asdict(row) for row in rows],
        "requests": [asdict(request) for request in requests],
    }
    told = notes(settings, requests, machine)
    write_files(folder, result, markdown(rows), told, machine, command=command)
    plot(rows, folder / "plot.png", f"{settings.source.name}, bfloat16; {machine}")


def write_files(
    folder: Path,
    result: Mapping[str, object],
    table: str,
    told: Sequence[str],
    machine: Machine,
    *,
    command: str,
) -> None:
    """Write ``results.json`` and ``table.md``, both with what it takes to repeat them."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
    }
    (folder / "results.json").write_text(json.dumps({**about, **result}, indent=1, default=str))
    listed = "\n".join(f"- {note}" for note in told)
    (folder / "table.md").write_text(f"{table}\n\n{listed}\n\n    {command}\n")


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """A bar a budget and state, of the parts' medians."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(row.budget for row in rows))
    places = [number + 0.7 * budgets.index(row.budget) for number, row in enumerate(rows)]
    figure = Figure(figsize=(10, 1.6 + 0.34 * max(places)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        widths = [row.seconds[part] for row in rows]
        axes.barh(places, widths, left=left, height=0.8, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, end in zip(places, left, strict=True):
        axes.annotate(
            f"{shown(end)} ms", (end, place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    labels = [f"{row.budget}{'' if row.pruned else ' (keep-all)'}, {row.state}" for row in rows]
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_xlabel("Seconds of one request")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)

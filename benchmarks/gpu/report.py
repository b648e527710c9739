"""What was measured on a GPU as tables, JSON and a plot, however much of it there is."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from benchmarks.gpu.journal import Journal, ServingBlock
from benchmarks.gpu.methods import selection_settings
from benchmarks.gpu.plot import plot
from benchmarks.gpu.settings import SERVERS, Group, Settings
from benchmarks.machine import Machine, package_versions
from benchmarks.report import Estimate, percentile
from benchmarks.selection_inputs import Size
from benchmarks.selection_report import Spread, Summary, summarise
from benchmarks.tables import table

#: The batch whose tower time an image's guidance and selection are set beside.
_TOWER_BATCH = 8


def markdown(settings: Settings, journal: Journal, machine: Machine) -> str:
    """Everything that was measured, under the device's name."""
    chosen = selection_settings(settings)
    summary = summarise(chosen, journal.methods)
    parts = [f"**{machine.gpu or machine.processor}**, {settings.source.name}, bfloat16"]
    if journal.way:
        parts.append(f"Servers: {journal.way}.")
    for group in settings.groups:
        blocks = [block for block in journal.serving if block.group == group.name]
        if blocks:
            parts += [f"**{group.name}**", _group_table(group, blocks, _tower_of_one(summary))]
    if journal.methods:
        parts += [
            "**Guidance and selection of a batch, milliseconds (of the vision tower's time)**",
            _methods_table(chosen.methods, chosen.sizes, summary, journal),
        ]
    return "\n\n".join([*parts, *journal.troubles])


def _group_table(group: Group, blocks: Sequence[ServingBlock], tower: float | None) -> str:
    heads = ["at a time", "server", "prompt tokens", "requests/s", "÷ first"]
    heads += ["TTFT mean (ms)", "p50", "p99", "mean ÷ first", "guidance + selection, of all time"]
    heads += ["of the tower's", "busiest processes (cores)", "failed"]
    return table(heads, _group_rows(group, blocks, tower), texts=2)


def _group_rows(
    group: Group, blocks: Sequence[ServingBlock], tower: float | None
) -> Iterator[list[str]]:
    first = group.conditions[0].name
    for clients, _ in group.loads:
        here = [block for block in blocks if block.clients == clients]
        reference = {block.round: block for block in here if block.condition == first}
        for condition in group.conditions:
            own = [block for block in here if block.condition == condition.name]
            if own:
                yield _row(own, reference, tower)


def _row(
    own: Sequence[ServingBlock], reference: dict[int, ServingBlock], tower: float | None
) -> list[str]:
    times = [time for block in own for time in block.first_tokens]
    pairs = [(block, reference[block.round]) for block in own if block.round in reference]
    rates = [one.requests_per_second / to.requests_per_second for one, to in pairs]
    waits = [
        statistics.fmean(one.first_tokens) / statistics.fmean(to.first_tokens) for one, to in pairs
    ]
    spent = sum(block.guidance_seconds + block.selection_seconds for block in own)
    images = sum(block.encoded_images for block in own)
    return [
        str(own[0].clients),
        own[0].condition,
        f"{statistics.fmean(block.prompt_tokens for block in own):.0f}",
        Estimate.of([block.requests_per_second for block in own]).show(1),
        Estimate.of(rates).show(2) if rates else "–",
        f"{1000 * statistics.fmean(times):.1f}",
        f"{1000 * percentile(times, 0.5):.1f}",
        f"{1000 * percentile(times, 0.99):.1f}",
        Estimate.of(waits).show(2) if waits else "–",
        f"{spent / sum(block.seconds for block in own):.2%}" if spent else "–",
        f"{spent / (images * tower):.2%}" if spent and images and tower else "–",
        ", ".join(f"{role} {cores:.2f}" for role, cores in own[-1].busiest),
        str(sum(len(block.failures) for block in own)),
    ]


def _tower_of_one(summary: Summary) -> float | None:
    """Seconds of the vision tower an image, in a batch of eight or the largest below."""
    fitting = [size for size in summary.towers if size.images <= _TOWER_BATCH]
    if not fitting:
        return None
    size = max(fitting, key=lambda size: size.images)
    return summary.towers[size].median / size.images


def _methods_table(
    methods: Sequence[str], sizes: Sequence[Size], summary: Summary, journal: Journal
) -> str:
    heads = ["method", *(f"batch {size.images}" for size in sizes), "makes the host wait"]
    cells = [
        [method, *(_cost(summary, method, size) for size in sizes), _waits(journal, method)]
        for method in methods
    ]
    towers = [_shown(summary.towers.get(size)) for size in sizes]
    return table(heads, [["vision tower", *towers, ""], *cells])


def _cost(summary: Summary, method: str, size: Size) -> str:
    row = summary.row(method, size.patches, size.images)
    if row.selection is None:
        return "–"
    both = row.selection.median + (row.guidance.median if row.guidance else 0.0)
    share = f" ({row.tower_share.median:.2%})" if row.tower_share else ""
    return f"{1000 * both:.3f}{share}"


def _shown(spread: Spread | None) -> str:
    return "–" if spread is None else f"{1000 * spread.median:.2f}"


def _waits(journal: Journal, method: str) -> str:
    found = journal.waits.get(method)
    return "not looked for" if found is None else "; ".join(found) or "no"


def notes(settings: Settings, journal: Journal, machine: Machine) -> list[str]:
    """What a reader of the tables has to know."""
    installed = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    busiest = max((block.busiest_client for block in journal.serving), default=0.0)
    others = max((block.other_load for block in journal.serving), default=0.0)
    return [
        f"{', '.join(SERVERS)} run beside each other on one device and are loaded in turn; "
        "keep-all runs the code of stock vLLM and stands for it where that has no server. Ratios "
        "are to the first server of a table at the same number of clients in the same round, ± is "
        f"one standard error over {settings.rounds} rounds; times to first token of all rounds "
        "together. Above 1, a ratio of requests/s says that pruning wins; of time to first token, "
        "that it loses.",
        "Guidance and selection: the device's seconds, from the server's metrics; of the tower's: "
        "to what it takes for as many images, measured alone, in a batch of eight or the largest "
        "below. Methods: medians of calls that wait for the device, one text an image.",
        f"The busiest client process kept {busiest:.2f} cores busy; near 1 it would be the bound. "
        f"Other processes kept at most {others:.2f} cores busy in a block.",
        f"Machine: {machine}. Versions: {installed}.",
    ]


def write(settings: Settings, journal: Journal, machine: Machine, *, command: str) -> str:
    """Write ``results.json``, ``table.md`` and, of requests, ``plot.png``; return the table."""
    shown = markdown(settings, journal, machine)
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": package_versions(),
        "settings": asdict(settings),
        "server_arguments": {name: settings.server_arguments(name) for name in SERVERS},
        "way": journal.way,
        "troubles": journal.troubles,
        "methods": [asdict(block) for block in journal.methods],
        "waits": journal.waits,
        "serving": [asdict(block) for block in journal.serving],
    }
    folder = settings.output
    (folder / "results.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    listed = "\n".join(f"- {note}" for note in notes(settings, journal, machine))
    (folder / "table.md").write_text(f"{shown}\n\n{listed}\n\n    {command}\n")
    if journal.serving:
        plot(settings.groups[0], journal.serving, folder / "plot.png", f"{machine}")
    return shown

"""Processor time a request as tables, JSON and a plot."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.conditions import STOCK_NAME, Condition
from benchmarks.host.plot import plot
from benchmarks.host.rounds import Block
from benchmarks.host.settings import Settings, beside_name
from benchmarks.machine import Machine, package_versions
from benchmarks.processes import API_SERVER, ENGINE_CORE, WORKER
from benchmarks.report import Estimate
from benchmarks.tables import table

ALL = "all"
#: What is told of a server; all processes are a few more than these.
SHOWN = (API_SERVER, ENGINE_CORE, WORKER, ALL)


@dataclass(frozen=True)
class Ratio:
    """One condition to another of the same round. None where the other used no time."""

    to: str
    milliseconds: dict[str, Estimate | None]
    requests_per_second: Estimate


@dataclass(frozen=True)
class Row:
    """One front end, number of texts and condition; processor milliseconds a request.

    ``busiest_client`` and ``other_load`` are the highest of the row's blocks, in cores.
    """

    front: str
    texts: int
    condition: str
    prompt_tokens: int
    milliseconds: dict[str, Estimate]
    requests_per_second: Estimate
    busiest_client: float
    other_load: float
    ratios: tuple[Ratio, ...]


def milliseconds(role: str, block: Block) -> float:
    """Of processor time a request."""
    used = block.processor
    return 1000 * (sum(used.values()) if role == ALL else used[role]) / block.requests


def _rate(block: Block) -> float:
    return block.requests / block.seconds


def summarise(settings: Settings, blocks: Sequence[Block]) -> list[Row]:
    """One row a front end, number of texts and condition, in the order of the settings."""
    rows = []
    for front in map(str, settings.fronts):
        for texts in settings.texts:
            here = [b for b in blocks if (b.front, b.texts) == (front, texts)]
            rows += [_row(condition, here) for condition in settings.conditions]
    return rows


def _row(condition: Condition, blocks: Sequence[Block]) -> Row:
    own = [block for block in blocks if block.condition == condition.name]
    names = {block.condition for block in blocks}
    others = [name for name in (STOCK_NAME, beside_name(condition.name)) if name in names]
    return Row(
        front=own[0].front,
        texts=own[0].texts,
        condition=condition.name,
        prompt_tokens=own[0].prompt_tokens,
        milliseconds={r: Estimate.of([milliseconds(r, b) for b in own]) for r in SHOWN},
        requests_per_second=Estimate.of([_rate(block) for block in own]),
        busiest_client=max(block.busiest_client for block in own),
        other_load=max(block.other_load for block in own),
        ratios=tuple(_ratio(own, blocks, to) for to in others if to != condition.name),
    )


def _ratio(own: Sequence[Block], blocks: Sequence[Block], to: str) -> Ratio:
    other = {block.round: block for block in blocks if block.condition == to}

    def estimate(measure: Callable[[Block], float]) -> Estimate | None:
        whole = [measure(other[block.round]) for block in own]
        parts = [measure(block) for block in own]
        if 0 in whole:
            return None
        return Estimate.of([part / one for part, one in zip(parts, whole, strict=True)])

    found = {role: estimate(partial(milliseconds, role)) for role in SHOWN}
    rate = estimate(_rate)
    assert rate is not None
    return Ratio(to, found, rate)


def markdown(rows: Sequence[Row]) -> str:
    """What was used, and the ratios."""
    parts = ["**Processor milliseconds a request**", _used(rows)]
    parts += ["**Ratios, round by round**", _ratios(rows)]
    return "\n\n".join(parts)


def _used(rows: Sequence[Row]) -> str:
    heads = ["front end", "texts an image", "server", *SHOWN, "prompt tokens", "requests/s"]
    cells = [
        [
            row.front,
            str(row.texts),
            row.condition,
            *(row.milliseconds[role].show(2) for role in SHOWN),
            str(row.prompt_tokens),
            row.requests_per_second.show(1),
            f"{row.busiest_client:.2f}",
            f"{row.other_load:.2f}",
        ]
        for row in rows
    ]
    return table([*heads, "busiest client", "other load"], cells, texts=3)


def _ratios(rows: Sequence[Row]) -> str:
    cells = [
        [
            row.front,
            str(row.texts),
            f"{row.condition} ÷ {ratio.to}",
            *("–" if (e := ratio.milliseconds[role]) is None else e.show(3) for role in SHOWN),
            ratio.requests_per_second.show(3),
        ]
        for row in rows
        for ratio in row.ratios
    ]
    return table(["front end", "texts an image", "server", *SHOWN, "requests/s"], cells, texts=3)


def notes(settings: Settings, blocks: Sequence[Block], machine: Machine) -> list[str]:
    """What a reader of the tables has to know."""
    others = [block.other_load for block in blocks]
    installed = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    told = [
        "User and system time of a server's processes with their threads, over the requests of a "
        f"block; {ALL}: with vLLM's few further processes. With several API servers these are "
        "taken together. 1 text an image: every image new.",
        "Where processes of a server wait for each other they sleep, instead of looking for work "
        "in a loop as vLLM's do by default. The worker's time holds what its threads compute of "
        "the model, where that runs on the processor.",
        f"Model: {settings.source.name}. {settings.rounds} rounds of blocks of "
        f"{settings.requests} requests, {settings.clients} at a time from "
        f"{settings.client_processes} client processes, {settings.output_tokens} output tokens, "
        f"budget {settings.budget}. ± is one standard error over rounds.",
        f"Busiest client: cores that a client process kept busy at most; it is the bound near 1. "
        f"Other processes kept {statistics.fmean(others):.2f} cores busy, at most "
        f"{max(others):.2f} in a block.",
        f"Machine: {machine}. Versions: {installed}.",
    ]
    if settings.beside:
        path, commit = settings.beside.path, settings.beside.commit
        told.append(f"Beside: the package in {path}, commit {commit}, by its own defaults.")
    return told


def processor_part(
    settings: Settings, blocks: Sequence[Block], machine: Machine
) -> tuple[str, dict[str, Any]]:
    """The tables with their notes, and what goes into ``results.json``; draws ``plot.png``."""
    rows = summarise(settings, blocks)
    plot(rows, settings.output / "plot.png", f"{settings.source.name}; {machine}")
    listed = "\n".join(f"- {note}" for note in notes(settings, blocks, machine))
    result = {
        "settings": asdict(settings),
        "server_arguments": {str(f): settings.server_arguments(f) for f in settings.fronts},
        "server_environment": {
            name: settings.server_environment(name) for name in settings.servers
        },
        "summary": [asdict(row) for row in rows],
        "blocks": [asdict(block) for block in blocks],
    }
    return f"{markdown(rows)}\n\n{listed}", result


def write(
    folder: Path,
    tables: Sequence[str],
    result: Mapping[str, Any],
    machine: Machine,
    *,
    command: str,
) -> None:
    """Write ``results.json`` and ``table.md``, both with what it takes to repeat them."""
    about = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": package_versions(),
    }
    text = json.dumps({**about, **result}, indent=1, default=str)
    (folder / "results.json").write_text(f"{text}\n")
    (folder / "table.md").write_text("\n\n".join([*tables, f"    {command}\n"]))

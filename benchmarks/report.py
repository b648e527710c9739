"""Statistics of measured blocks, as tables."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from benchmarks.client import Block
from benchmarks.conditions import STOCK_NAME
from benchmarks.machine import Machine, package_versions
from benchmarks.record import Record
from benchmarks.settings import Case, Settings
from benchmarks.workload import WORKLOADS


@dataclass(frozen=True)
class Estimate:
    """A mean over rounds; the standard error is None where there was one round."""

    mean: float
    standard_error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def show(self, digits: int) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.{digits}f}"
        return f"{self.mean:.{digits}f}{error}"


@dataclass(frozen=True)
class Row:
    """One case and condition. Times in seconds; ratios to stock in the same round and case.

    Tokens are means over requests, ``first_token_by_turn`` over those of each turn. Prompt tokens
    were cached or computed; both are None where the server does not say. The peak use of the KV
    cache is a share, ``running_peak`` the most requests at once; ``other_load`` is the highest of
    the row's blocks, in cores.
    """

    case: Case
    condition: str
    requests: int
    prompt_tokens: float
    cached_tokens: float | None
    computed_tokens: float | None
    requests_per_second: Estimate
    prompt_tokens_per_second: float
    first_token_mean: float
    first_token_p50: float
    first_token_p95: float
    first_token_by_turn: tuple[float, ...]
    inter_token_mean: float | None
    kv_cache_peak: float
    running_peak: int
    other_load: float
    throughput_ratio: Estimate
    first_token_ratio: Estimate

    @property
    def is_stock(self) -> bool:
        return self.condition == STOCK_NAME


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the closest ranks; ``share`` from 0 to 1."""
    return float(np.quantile(values, share))


def requests_per_second(block: Block) -> float:
    return len(block.timings) / block.seconds


def mean_first_token(block: Block) -> float:
    return statistics.fmean(timing.first_token for timing in block.timings)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def summarise(settings: Settings, blocks: Sequence[Block]) -> list[Row]:
    """One row a case and condition, in the order of the settings: stock is a case's first."""
    stock = {(b.round, b.case): b for b in blocks if b.condition == STOCK_NAME}
    return [
        _row([b for b in blocks if (b.case, b.condition) == (case, condition.name)], stock)
        for case in settings.cases
        for condition in settings.conditions(case.workload)
    ]


def _row(blocks: list[Block], stock: dict[tuple[int, Case], Block]) -> Row:
    timings = [timing for block in blocks for timing in block.timings]
    first_tokens = [timing.first_token for timing in timings]
    gaps = [t.inter_token_latency for t in timings if t.inter_token_latency is not None]
    cached = [(t.prompt_tokens, t.cached_tokens) for t in timings if t.cached_tokens is not None]
    turns = sorted({timing.turn for timing in timings})

    def ratio(measure: Callable[[Block], float]) -> Estimate:
        return Estimate.of(
            [measure(block) / measure(stock[block.round, block.case]) for block in blocks]
        )

    return Row(
        case=blocks[0].case,
        condition=blocks[0].condition,
        requests=len(timings),
        prompt_tokens=statistics.fmean(timing.prompt_tokens for timing in timings),
        cached_tokens=_mean([found for _, found in cached]),
        computed_tokens=_mean([prompt - found for prompt, found in cached]),
        requests_per_second=Estimate.of([requests_per_second(block) for block in blocks]),
        prompt_tokens_per_second=sum(timing.prompt_tokens for timing in timings)
        / sum(block.seconds for block in blocks),
        first_token_mean=statistics.fmean(first_tokens),
        first_token_p50=percentile(first_tokens, 0.5),
        first_token_p95=percentile(first_tokens, 0.95),
        first_token_by_turn=tuple(
            statistics.fmean(t.first_token for t in timings if t.turn == turn) for turn in turns
        ),
        inter_token_mean=_mean(gaps),
        kv_cache_peak=max(block.kv_cache_peak for block in blocks),
        running_peak=max(block.running_peak for block in blocks),
        other_load=max(block.other_load for block in blocks),
        throughput_ratio=ratio(requests_per_second),
        first_token_ratio=ratio(mean_first_token),
    )


_COLUMNS = (
    "server",
    "prompt tokens",
    "of them cached",
    "computed tokens",
    "requests/s",
    "TTFT mean (s)",
    "p50",
    "p95",
    "inter-token (ms)",
    "KV cache peak",
    "most at once",
    "throughput ÷ stock",
    "TTFT ÷ stock",
    "other load",
)


def tables(rows: Sequence[Row]) -> str:
    """A heading and table for each workload; for chats one of the turns besides."""
    parts = []
    for workload in dict.fromkeys(row.case.workload for row in rows):
        some = [row for row in rows if row.case.workload == workload]
        parts += [f"**{WORKLOADS[workload].title}** (`{workload}`)", markdown_table(some)]
        if any(len(row.first_token_by_turn) > 1 for row in some):
            parts += ["Mean TTFT (s) of each turn:", _turns_table(some)]
    return "\n\n".join(parts)


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows of one workload, with a column for the case where there are several."""
    return _table(_COLUMNS, rows, _cells)


def _turns_table(rows: Sequence[Row]) -> str:
    turns = range(max(len(row.first_token_by_turn) for row in rows))
    columns = ["server", *(f"turn {turn + 1}" for turn in turns)]
    return _table(columns, rows, lambda row: [row.condition, *map(_time, row.first_token_by_turn)])


def _table(columns: Sequence[str], rows: Sequence[Row], cells: Callable[[Row], list[str]]) -> str:
    cases = list(dict.fromkeys(row.case for row in rows))
    several = len(cases) > 1
    columns = ["load", *columns] if several else columns
    left = "| --- " * (2 if several else 1)
    lines = [
        "| " + " | ".join(columns) + " |",
        left + "| ---: " * (len(columns) - several - 1) + "|",
    ]
    for row in rows:
        # A case is named once, before its first row.
        label = [row.case.label(cases) if row.is_stock else ""] if several else []
        lines.append("| " + " | ".join([*label, *cells(row)]) + " |")
    return "\n".join(lines)


def _tokens(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.0f}"


def _cells(row: Row) -> list[str]:
    return [
        row.condition,
        f"{row.prompt_tokens:.0f}",
        _tokens(row.cached_tokens),
        _tokens(row.computed_tokens),
        row.requests_per_second.show(3),
        _time(row.first_token_mean),
        _time(row.first_token_p50),
        _time(row.first_token_p95),
        "–" if row.inter_token_mean is None else f"{1000 * row.inter_token_mean:.0f}",
        f"{100 * row.kv_cache_peak:.1f}%",
        str(row.running_peak),
        "1" if row.is_stock else row.throughput_ratio.show(2),
        "1" if row.is_stock else row.first_token_ratio.show(2),
        f"{row.other_load:.2f}",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.{2 if seconds >= 1 else 3}f}"


def notes(settings: Settings, record: Record, machine: Machine, model: str) -> str:
    """What the tables must not be read without."""
    installed = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    others = [block.other_load for block in record.blocks]
    loads = ", ".join(dict.fromkeys(case.load for case in settings.cases))
    fits = "; ".join(f"{name} {capacity}" for name, capacity in record.capacities.items())
    return (
        f"Model: {model}, {settings.dtype}. Load: {loads}; {settings.output_tokens} output tokens; "
        f"{settings.rounds} rounds of at least {settings.requests} requests, in whole "
        f"conversations. Machine: {machine}. Versions: {installed}. "
        f"Other processes kept {statistics.fmean(others):.2f} cores busy, at most "
        f"{max(others):.2f} in a block (the last column: at most in the row's). "
        f"{_sittings(record)}{_STAND_IN if settings.one_server else ''}"
        "Ratios are to stock in the same round; ± is one standard error over rounds. "
        "Every block has images and texts of its own, and no cache is reset: what a block finds in "
        "vLLM's caches (prefix, multimodal, encoder) or in the plugin's it put there itself. "
        "Cached tokens are those of the prefix cache, as the server reports them; the rest of the "
        f"prompt is computed. {_beside(settings)}"
        f"The KV cache's peak and the most requests running at once are the highest seen on "
        f"/metrics. The cache holds at once: {fits}."
    )


_STAND_IN = (
    "For stock vLLM stands method keep-all on the same server, which runs the code of stock vLLM. "
)


def _beside(settings: Settings) -> str:
    if settings.beside is None:
        return ""
    path, commit = settings.beside.path, settings.beside.commit
    return f"Beside: the package in {path}, commit {commit}, by its own defaults. "


def _sittings(record: Record) -> str:
    if record.sittings < 2:
        return ""
    return f"The servers were started {record.sittings} times, since the run was taken up again. "


def write(
    settings: Settings,
    record: Record,
    rows: Sequence[Row],
    machine: Machine,
    *,
    model: str,
    command: str,
) -> None:
    """Write ``results.json`` (with every request's times) and ``table.md``."""
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": package_versions(),
        "settings": asdict(settings),
        "server_arguments": settings.server_arguments,
        "server_options": {name: settings.server_options(name) for name in settings.servers},
        "capacities": {name: asdict(found) for name, found in record.capacities.items()},
        "sittings": record.sittings,
        "summary": [asdict(row) for row in rows],
        "blocks": [asdict(block) for block in record.blocks],
    }
    folder = settings.output
    (folder / "results.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    told = notes(settings, record, machine, model)
    (folder / "table.md").write_text(f"{tables(rows)}\n\n{told}\n\n    {command}\n")

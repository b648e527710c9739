"""Statistics of measured blocks, as a table and a plot."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.client import Block
from benchmarks.machine import Machine, package_versions
from benchmarks.rounds import Settings


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
    """One server and budget (None: stock). Times in seconds; ratios to stock in the same round."""

    budget: int | None
    requests: int
    prompt_tokens: float
    requests_per_second: Estimate
    prompt_tokens_per_second: float
    first_token_mean: float
    first_token_p50: float
    first_token_p95: float
    inter_token_mean: float | None
    throughput_ratio: Estimate
    first_token_ratio: Estimate

    @property
    def name(self) -> str:
        return "stock vLLM" if self.budget is None else f"litelvlm, budget {self.budget}"


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the closest ranks; ``share`` from 0 to 1."""
    return float(np.quantile(values, share))


def requests_per_second(block: Block) -> float:
    return len(block.timings) / block.seconds


def mean_first_token(block: Block) -> float:
    return statistics.fmean(timing.first_token for timing in block.timings)


def summarise(blocks: Sequence[Block]) -> list[Row]:
    """One row a server and budget, stock first, then budgets from large to small."""
    stock = {block.round: block for block in blocks if block.budget is None}
    budgets = sorted({block.budget for block in blocks if block.budget is not None}, reverse=True)
    return [
        _row([block for block in blocks if block.budget == budget], stock)
        for budget in [None, *budgets]
    ]


def _row(blocks: list[Block], stock: dict[int, Block]) -> Row:
    timings = [timing for block in blocks for timing in block.timings]
    first_tokens = [timing.first_token for timing in timings]
    gaps = [t.inter_token_latency for t in timings if t.inter_token_latency is not None]

    def ratio(measure: Callable[[Block], float]) -> Estimate:
        return Estimate.of([measure(block) / measure(stock[block.round]) for block in blocks])

    return Row(
        budget=blocks[0].budget,
        requests=len(timings),
        prompt_tokens=statistics.fmean(timing.prompt_tokens for timing in timings),
        requests_per_second=Estimate.of([requests_per_second(block) for block in blocks]),
        prompt_tokens_per_second=sum(timing.prompt_tokens for timing in timings)
        / sum(block.seconds for block in blocks),
        first_token_mean=statistics.fmean(first_tokens),
        first_token_p50=percentile(first_tokens, 0.5),
        first_token_p95=percentile(first_tokens, 0.95),
        inter_token_mean=statistics.fmean(gaps) if gaps else None,
        throughput_ratio=ratio(requests_per_second),
        first_token_ratio=ratio(mean_first_token),
    )


_COLUMNS = (
    "server",
    "prompt tokens",
    "requests/s",
    "prompt tokens/s",
    "TTFT mean (s)",
    "p50",
    "p95",
    "inter-token (ms)",
    "throughput ÷ stock",
    "TTFT ÷ stock",
)


def markdown_table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| --- " + "| ---: " * (len(_COLUMNS) - 1) + "|"]
    for row in rows:
        gap = "–" if row.inter_token_mean is None else f"{1000 * row.inter_token_mean:.0f}"
        cells = [
            row.name,
            f"{row.prompt_tokens:.0f}",
            row.requests_per_second.show(3),
            f"{row.prompt_tokens_per_second:.0f}",
            f"{row.first_token_mean:.2f}",
            f"{row.first_token_p50:.2f}",
            f"{row.first_token_p95:.2f}",
            gap,
            "1" if row.budget is None else row.throughput_ratio.show(2),
            "1" if row.budget is None else row.first_token_ratio.show(2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw both ratios against the budget, with standard errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pruned = [row for row in rows if row.budget is not None]
    positions = range(len(pruned))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("Throughput ÷ stock (higher is better)", [row.throughput_ratio for row in pruned]),
        (
            "Time to first token ÷ stock (lower is better)",
            [row.first_token_ratio for row in pruned],
        ),
    )
    for axes, (label, ratios) in zip(figure.subplots(1, 2), panels, strict=True):
        means = [ratio.mean for ratio in ratios]
        errors = [ratio.standard_error or 0.0 for ratio in ratios]
        axes.axhline(1, color="0.5", linestyle="--", linewidth=1, label="stock vLLM")
        axes.errorbar(positions, means, yerr=errors, marker="o", capsize=4, label="litelvlm")
        for position, mean, error in zip(positions, means, errors, strict=True):
            place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{mean:.2f}", (position, mean + error), **place)
        axes.set_xticks(positions, [str(row.budget) for row in pruned])
        axes.set_xlim(-0.4, len(pruned) - 0.4)
        axes.set_ylim(0, 1.15 * max([1.0, *(m + e for m, e in zip(means, errors, strict=True))]))
        axes.set_xlabel("Budget (visual tokens kept per image)")
        axes.set_title(label, fontsize="medium")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(loc="best", frameon=False)
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def write(
    folder: Path,
    settings: Settings,
    blocks: Sequence[Block],
    rows: Sequence[Row],
    machine: Machine,
    *,
    model: str,
    command: str,
) -> None:
    """Write ``results.json`` (with every request's times), ``table.md`` and ``plot.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = package_versions()
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": versions,
        "settings": asdict(settings),
        "server_arguments": settings.server_arguments,
        "summary": [{"name": row.name, **asdict(row)} for row in rows],
        "blocks": [asdict(block) for block in blocks],
    }
    (folder / "results.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    load = (
        f"{settings.concurrency} requests at a time, {settings.output_tokens} output tokens, "
        f"{settings.rounds} x {settings.requests} requests"
    )
    installed = ", ".join(f"{name} {number}" for name, number in versions.items())
    others = [block.other_load for block in blocks]
    notes = (
        f"Model: {model}, bfloat16. Load: {load}. Machine: {machine}. Versions: {installed}. "
        f"Other processes kept {statistics.fmean(others):.2f} cores busy, at most "
        f"{max(others):.2f} in a block. "
        "Ratios are to stock in the same round; ± is one standard error over rounds."
    )
    (folder / "table.md").write_text(f"{markdown_table(rows)}\n\n{notes}\n\n    {command}\n")
    plot(rows, folder / "plot.png", f"{model}; {load}\n{machine}")

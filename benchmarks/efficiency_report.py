"""The efficiency table, with JSON and a plot."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.breakdown_report import machine_note, shown, write_files
from benchmarks.breakdown_rounds import Case, Request
from benchmarks.breakdown_settings import Settings
from benchmarks.efficiency_costs import Decoder, KvCache
from benchmarks.machine import Machine

UNPRUNED = "keep-all"


@dataclass(frozen=True)
class Row:
    """A method and budget: costs of a request by formula, medians of times in seconds.

    ``language_prefill`` is the part of ``first_token`` in the language model. ``kv_tokens``:
    tokens whose keys and values the request holds when it ends.
    """

    method: str
    budget: int
    prompt_tokens: int
    operations: int
    first_token: float
    language_prefill: float
    total: float
    kv_tokens: int
    kv_block_bytes: int
    kv_exact_bytes: int
    hidden_bytes: int
    stored_bytes: int

    @property
    def name(self) -> str:
        return "unpruned" if self.method == UNPRUNED else f"{self.method}, {self.budget}"


def summarise(
    requests: Sequence[Request], cases: Sequence[Case], decoder: Decoder, kv_cache: KvCache
) -> list[Row]:
    """One row a case, in their order; the first is the one without pruning."""
    return [
        _row([request for request in requests if request.case == case], decoder, kv_cache)
        for case in cases
    ]


def _row(requests: Sequence[Request], decoder: Decoder, kv_cache: KvCache) -> Row:
    def median(measure: Callable[[Request], float]) -> float:
        return statistics.median(map(measure, requests))

    first = requests[0]
    tokens = first.answer.prompt_tokens
    held = tokens + first.answer.output_tokens - 1  # the last one's are never computed
    return Row(
        method=first.case.method,
        budget=first.case.budget,
        prompt_tokens=tokens,
        operations=decoder.prefill_operations(tokens),
        first_token=median(lambda request: request.answer.first_token),
        language_prefill=median(lambda request: request.answer.times.seconds["prefill"]),
        total=median(lambda request: request.answer.times.total),
        kv_tokens=held,
        kv_block_bytes=kv_cache.block_bytes(held),
        kv_exact_bytes=kv_cache.exact_bytes(held),
        hidden_bytes=decoder.hidden_bytes(tokens),
        stored_bytes=decoder.stored_bytes(tokens),
    )


_HEADS = (
    "method, visual tokens",
    "n",
    "TFLOPs",
    "first token (ms)",
    "of it, language model (ms)",
    "total (ms)",
    "KV cache, blocks (MB)",
    "KV cache, exact (MB)",
    "hidden states (MB)",
    "storing activation (MB)",
)


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(_HEADS) + " |", "| --- " + "| ---: " * (len(_HEADS) - 1) + "|"]
    for row in rows:
        cells = [
            row.name,
            str(row.prompt_tokens),
            f"{row.operations / 1e12:.3g}",
            *(shown(s) for s in (row.first_token, row.language_prefill, row.total)),
            *(
                megabytes(value)
                for value in (
                    row.kv_block_bytes,
                    row.kv_exact_bytes,
                    row.hidden_bytes,
                    row.stored_bytes,
                )
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def megabytes(value: int) -> str:
    """Millions of bytes, with at least two significant digits."""
    millions = value / 1e6
    return f"{millions:.0f}" if millions >= 100 else f"{millions:.3g}"


def notes(
    settings: Settings,
    requests: Sequence[Request],
    costs: tuple[Decoder, KvCache],
    machine: Machine,
) -> list[str]:
    """What a reader of the table has to know."""
    decoder, kv_cache = costs
    output = settings.output_tokens
    return [
        "n: tokens of the prompt as the language model gets it, visual ones and text.",
        "TFLOPs, by the paper's formula: 10^12 multiply-adds of the language model's layers in "
        f"prefill, layers x (4 n d^2 + 2 n^2 d + 3 n d m), here {decoder.layers} layers, "
        f"d = {decoder.width}, m = {decoder.mlp}. Vision tower, guidance and selection are not "
        "in it, but they are in the times.",
        f"First token: from image and text to the first token; total: to the last of {output}. "
        f"Medians of {settings.repetitions} repetitions, one request at a time, image and text "
        "new.",
        f"KV cache: keys and values of n + {output - 1} tokens, {kv_cache.layers} layers x 2 x "
        f"{kv_cache.kv_heads} heads x {kv_cache.head_size} x {kv_cache.number_bytes} bytes each, "
        f"and the same in whole blocks of {kv_cache.block_tokens} tokens, as vLLM reserves it.",
        f"Hidden states: n x d x {decoder.number_bytes} bytes, between two layers. Storing "
        "activation: 4 n d numbers in every layer, a reading of the paper's column, which is not "
        "defined there: with LLaVA-1.5-7B's sizes it gives 0.20, 0.34 and 0.73 GB where the paper "
        "has 0.21 (64 tokens), 0.35 (192) and 0.81 (all). vLLM stores no such thing: what outlives "
        "a layer is the KV cache.",
        f"Model: {settings.source.name}, bfloat16, eager.",
        machine_note(machine, [request.other_load for request in requests]),
    ]


def write(
    settings: Settings,
    requests: Sequence[Request],
    rows: Sequence[Row],
    costs: tuple[Decoder, KvCache],
    machine: Machine,
    *,
    command: str,
) -> None:
    """Write ``results.json`` (with every request), ``table.md`` and ``plot.png``."""
    folder = settings.output
    result = {
        "settings": asdict(settings),
        "decoder": asdict(costs[0]),
        "kv_cache": asdict(costs[1]),
        "summary": [{"name": row.name, **asdict(row)} for row in rows],
        "requests": [asdict(request) for request in requests],
    }
    told = notes(settings, requests, costs, machine)
    write_files(folder, result, markdown(rows), told, machine, command=command)
    plot(rows, folder / "plot.png", f"{settings.source.name}, bfloat16; {machine}")


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw every cost as a part of the unpruned request's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unpruned, pruned = rows[0], rows[1:]
    costs: dict[str, Callable[[Row], float]] = {
        "FLOPs": lambda row: row.operations,
        "first token": lambda row: row.first_token,
        "total time": lambda row: row.total,
        "KV cache": lambda row: row.kv_exact_bytes,
    }
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(costs)
    for number, (label, cost) in enumerate(costs.items()):
        places = [place + width * (number - (len(costs) - 1) / 2) for place in range(len(pruned))]
        heights = [cost(row) / cost(unpruned) for row in pruned]
        bars = axes.bar(places, heights, width=0.9 * width, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize="x-small")
    axes.axhline(1, color="0.5", linestyle="--", linewidth=1, label="unpruned")
    axes.set_xticks(range(len(pruned)), [row.name for row in pruned])
    axes.set_ylabel("÷ unpruned (lower is better)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)

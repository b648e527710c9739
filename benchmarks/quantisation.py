"""Memory and answers of a model whose linear layers are quantised: the paper's Table 12.

    python -m benchmarks.quantisation --questions 800

Every form is a copy of the checkpoint (:mod:`benchmarks.quantised_copy`) that answers the same
questions in vLLM's offline engine. Beside its answers stands how many of the kept tokens are those
that the unquantised model keeps. vLLM's CPU kernels for 4-bit weights need AVX-512:
``int4-rounded`` computes with the same rounded weights in floating point, and tells the memory of
the packed ones.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file

from benchmarks.machine import Machine
from benchmarks.quantised_copy import quantised_copy

_SHIPPED = Path(__file__).parents[1] / "vllm_litelvlm" / "demo" / "model"
_PLAIN = "as it is"


@dataclass(frozen=True)
class Kept:
    """The patches of an image that a method kept for some texts."""

    method: str
    text_ids: list[list[int]]
    patches: frozenset[int]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.quantisation")
    parser.add_argument("--model", type=Path, default=_SHIPPED, help="folder of a LLaVA-1.5")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=["int8", "int4-rounded"],
        choices=["int8", "int4", "int4-rounded"],
    )
    parser.add_argument("--methods", nargs="+", default=["keep-all", "litelvlm", "fovea"])
    parser.add_argument("--budget", type=int, default=64, help="visual tokens that are kept")
    parser.add_argument("--questions", type=int, default=800, help="of the validation split")
    parser.add_argument("--dtype", default="auto", help="of what is not quantised")
    parser.add_argument("--output", type=Path, default=Path("quantisation.md"))
    args = parser.parse_args(arguments)
    rows: list[list[str]] = []
    with TemporaryDirectory() as folder:
        plain: list[Kept] = []
        for form in [_PLAIN, *args.forms]:
            model = sized = args.model
            if form != _PLAIN:
                kind, _, rounded = form.partition("-")
                model = sized = quantised_copy(args.model, Path(folder) / f"{form} packed", kind)
                if rounded:
                    model = quantised_copy(args.model, Path(folder) / form, kind, rounded=True)
            print(f"{form}: {args.questions} questions by {', '.join(args.methods)}", flush=True)
            found, kept = _evaluate(model, Path(folder) / f"{form} answers", args)
            plain = plain or kept
            rows += _rows(form, _weights(sized), found, _same(plain, kept))
    table = _table(rows)
    command = shlex.join(["python", "-m", "benchmarks.quantisation", *(arguments or sys.argv[1:])])
    args.output.write_text(f"{table}\n\n`{command}`, {Machine.describe()}\n")
    print(table)


def _evaluate(
    model: Path, output: Path, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Kept]]:
    """What ``litelvlm evaluate`` reports of each method, and what was kept of each image."""
    trace = output.with_suffix(".trace")
    command = [
        *(sys.executable, "-m", "vllm_litelvlm.cli", "evaluate", "--backend", "engine"),
        *("--model", str(model), "--output", str(output), "--questions", str(args.questions)),
        *("--methods", *args.methods, "--budgets", str(args.budget)),
        *("--", "--dtype", args.dtype, "--enforce-eager", "--max-model-len", "2048"),
    ]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_LITELVLM_TRACE": str(trace)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    results = json.loads((output / "results.json").read_text())
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    kept = [Kept(one["method"], one["text_ids"], frozenset(one["kept"])) for one in lines]
    return [row for row in results["rows"] if row["kind"] == "all"], kept


def _weights(model: Path) -> dict[str, float]:
    """MiB of the vision tower and of the language model."""
    parts = {"vision_tower": 0.0, "language_model": 0.0}
    for name, tensor in load_file(model / "model.safetensors").items():
        for part in parts:
            parts[part] += tensor.nbytes / 2**20 if part in name else 0
    return parts


def _same(plain: Sequence[Kept], kept: Sequence[Kept]) -> dict[str, str]:
    """How many kept tokens are the unquantised model's, by method: the mean, and the least."""
    shared: dict[str, list[int]] = {}
    for before, now in zip(plain, kept, strict=True):
        assert (before.method, before.text_ids) == (now.method, now.text_ids)
        shared.setdefault(now.method, []).append(len(before.patches & now.patches))
    return {method: f"{mean(counts):.1f} ({min(counts)})" for method, counts in shared.items()}


def _rows(
    form: str, weights: dict[str, float], found: list[dict[str, Any]], same: dict[str, str]
) -> list[list[str]]:
    rows = []
    for row in found:
        method = row["label"]
        if method not in same:
            continue
        score, iou = (
            f"{row[name]['value']:.3f} ± {row[name]['standard_error']:.3f}"
            for name in ("score", "iou")
        )
        sizes = [f"{size:.1f}" for size in weights.values()]
        rows.append([form, *sizes, method, score, iou, same[method]])
    return rows


def _table(rows: list[list[str]]) -> str:
    head = [
        *("linear layers", "tower, MiB", "language model, MiB", "method", "score", "box IoU"),
        "same tokens, mean (least)",
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()

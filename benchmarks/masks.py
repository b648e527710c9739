"""Masks a second by budget and expressions a picture, beside the unpruned engine in the same run.

    python -m benchmarks.masks --geometry small --budgets 192 64 --expressions 1 4 16

A server of a checkpoint with [SEG] (by default one with random weights is built) is asked about a
few pictures whose features vision tower and SAM have; the expressions are new in every request.
Conditions take turns within a round, and each is compared with keep-all of its round.
"""

import argparse
import base64
import io
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count as numbers
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.arguments import count
from benchmarks.checkpoints import CHECKPOINTS, GEOMETRIES
from benchmarks.machine import Machine, OtherLoad, command_line, package_versions
from benchmarks.progress import progress_bar
from benchmarks.tables import table
from vllm_litelvlm.demo.grounding import GroundingGeometry, build_grounding
from vllm_litelvlm.demo.server import serve

_SECONDS = re.compile(r"^litelvlm_mask_seconds_sum (\S+)", re.MULTILINE)


@dataclass
class Measured:
    """Of one budget and number of expressions, a value a round."""

    budget: float
    expressions: int
    masks_a_second: list[float] = field(default_factory=list)
    seconds_of_sam: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser().parse_args(given)
    console = Console()
    command, machine, other = (
        command_line("benchmarks.masks", given),
        Machine.describe(),
        OtherLoad(),
    )
    conditions = [
        Measured(budget, expressions)
        for expressions in args.expressions
        for budget in (1.0, *args.budgets)
    ]
    with TemporaryDirectory() as folder:
        llava, clip = args.model, args.clip_model
        if llava is None:
            with console.status("Building the checkpoint ..."):
                sizes = asdict(GEOMETRIES[args.geometry])
                built = build_grounding(
                    CHECKPOINTS / f"masks-{args.geometry}",
                    GroundingGeometry(**sizes, sam_image_size=args.sam_size),
                    torch.bfloat16,
                )
            llava, clip = str(built.llava), str(built.clip)
        serving = [
            *("--runner=pooling", "--served-model-name=model", "--enforce-eager"),
            *("--max-model-len=4096", f"--max-num-seqs={max(8, args.concurrency)}"),
            f"--dtype={args.dtype}",
        ]
        log = Path(folder) / "server.log"
        with serve(llava, clip_model=clip, arguments=serving, log=log) as server:
            asker = _Asker(server.url, args.concurrency, args.seed)
            rounds = args.rounds + 1  # the first warms up
            with progress_bar(console, 40) as progress:
                task = progress.add_task("Asking", total=rounds * len(conditions))
                for number in range(rounds):
                    for one in conditions:
                        asker.measure(one, args.requests, kept=number > 0)
                        progress.advance(task)
    told = f"{machine}\n\n{_table(conditions)}"
    settings = {name: str(value) for name, value in vars(args).items()}
    record = {
        "command": command,
        "machine": asdict(machine),
        "other_load_cores": round(other.cores(), 2),
        "versions": package_versions(),
        "settings": settings,
        "conditions": [asdict(one) for one in conditions],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    args.output.write_text(told + "\n")
    console.print(Markdown(told))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0], prog="python -m benchmarks.masks"
    )
    add = parser.add_argument
    add("--model", help="a checkpoint with [SEG]; by default one with random weights is built")
    add("--clip-model", help="CLIP of the model's vision tower, where the plugin's does not fit")
    add("--geometry", choices=["large", "small", "tiny"], default="small", help="(%(default)s)")
    add("--dtype", default="auto", help="of the server (%(default)s)")
    add("--sam-size", type=count, default=256, help="pixels of the built SAM (%(default)s)")
    add("--budgets", type=count, nargs="+", default=[192, 64, 29], metavar="TOKENS")
    add("--expressions", type=count, nargs="+", default=[1, 4, 16], metavar="N")
    add("--requests", type=count, default=8, help="of a condition in a round (%(default)s)")
    add("--rounds", type=count, default=5, help="that count (%(default)s)")
    add("--concurrency", type=count, default=2, help="clients (%(default)s)")
    add("--seed", type=int, default=0, help="of the pictures (%(default)s)")
    add("--output", type=Path, default=Path("benchmarks/results/masks.md"))
    return parser


class _Asker:
    """Clients of a server; no two requests have an expression in common."""

    def __init__(self, url: str, concurrency: int, seed: int) -> None:
        self._url = url
        self._threads = ThreadPoolExecutor(concurrency)
        self._numbers = numbers()
        random = np.random.default_rng(seed)
        self._images = [_link(random) for _ in range(4)]

    def measure(self, one: Measured, requests: int, kept: bool) -> None:
        """Ask, and note how long it took."""
        bodies = [self._body(one, number) for number in range(requests)]
        sam, started = self._sam_seconds(), time.perf_counter()
        answers = list(self._threads.map(self._ask, bodies))
        took = time.perf_counter() - started
        if not kept:
            return
        masks = requests * one.expressions
        one.masks_a_second.append(masks / took)
        one.seconds_of_sam.append((self._sam_seconds() - sam) / masks)
        used = [answer["usage"] for answer in answers]
        one.prompt_tokens = round(statistics.fmean(usage["prompt_tokens"] for usage in used))
        one.cached_tokens = round(statistics.fmean(usage["cached_tokens"] for usage in used))

    def _body(self, one: Measured, number: int) -> dict[str, Any]:
        return {
            "image": self._images[number % len(self._images)],
            "expressions": [f"thing {next(self._numbers)} here" for _ in range(one.expressions)],
            "mm_processor_kwargs": {"litelvlm": {"budget": one.budget}},
        }

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(f"{self._url}/v1/masks", json=body, timeout=600)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def _sam_seconds(self) -> float:
        found = _SECONDS.search(httpx.get(f"{self._url}/metrics", timeout=60).text)
        return float(found[1]) if found else 0.0


def _link(random: np.random.Generator) -> str:
    pixels = random.integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _table(conditions: Sequence[Measured]) -> str:
    whole = {one.expressions: one for one in conditions if one.budget == 1.0}
    rows = []
    for one in conditions:
        beside = whole[one.expressions].masks_a_second
        ratios = [a / b for a, b in zip(one.masks_a_second, beside, strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
        rows.append(
            [
                str(one.expressions),
                "all" if one.budget == 1.0 else str(one.budget),
                str(one.prompt_tokens),
                str(one.cached_tokens),
                f"{statistics.fmean(one.masks_a_second):.2f}",
                f"{statistics.fmean(ratios):.2f} ± {error:.2f}",
                f"{1000 * statistics.fmean(one.seconds_of_sam):.0f}",
            ]
        )
    heads = ["expressions", "budget", "prompt tokens", "of them cached", "masks/s", "÷ all tokens"]
    return table([*heads, "SAM, ms a mask"], rows)


if __name__ == "__main__":
    main()

"""Sends generated requests to a real server, and judges its answers.

    python -m tests.fuzz --requests 5000

Every answer must be 200, or a refusal (400, or 404 for a model that is not served) with a sentence;
at the end the engine must answer a few fixed questions as it did before. What fails is written to
``--output``, and drawn again by ``--first NUMBER --requests 1``.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.e2e.adapter import write_adapter
from tests.e2e.client import ask, user_turn
from tests.fuzz.generator import VARIANTS, Generated, Generator
from vllm_litelvlm.demo.checkpoint import TINY, build_checkpoint
from vllm_litelvlm.demo.server import serve

_REFUSALS = {400, 404}
_FIXED: list[Any] = [None, {"budget": 64}, {"method": "fovea", "focus": 0.25, "budget": 96}]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (%(default)s)")
    parser.add_argument("--concurrent", type=int, default=8, help="at once (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("fuzz"), help="folder (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), args.output) as url:
        before = _fixed_answers(url)
        faults, counts = asyncio.run(_send_all(url, args))
        same = _fixed_answers(url) == before
    table = Table("endpoint", "status", "answers")
    for (path, status), count in sorted(counts.items()):
        table.add_row(path, str(status), str(count))
    console.print(table)
    (args.output / "faults.json").write_text(json.dumps(faults, indent=1))
    console.print(f"{len(faults)} faults, in {args.output / 'faults.json'}")
    console.print("The engine answers as before." if same else "The engine answers otherwise now.")
    return int(bool(faults) or not same)


@contextmanager
def _server(folder: Path, output: Path) -> Iterator[str]:
    """A small model with every way in."""
    checkpoint = build_checkpoint(folder / "checkpoint", TINY)
    adapter = write_adapter(folder / "adapter", checkpoint.llava)
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"variants": VARIANTS, "max_texts": 8},
        arguments=[
            *("--served-model-name", "model", "alias", "--dtype=float32", "--enforce-eager"),
            *("--max-model-len=4096", "--max-num-seqs=16", '--limit-mm-per-prompt={"image": 4}'),
            *("--enable-lora", "--lora-modules", f"adapter={adapter}"),
        ],
        environment={"VLLM_SERVER_DEV_MODE": "1"},
        log=output / "server.log",
    ) as running:
        yield running.url


def _fixed_answers(url: str) -> list[Any]:
    answers = []
    for options in _FIXED:
        for cache in ("mm", "encoder", "prefix"):
            httpx.post(f"{url}/reset_{cache}_cache", timeout=60).raise_for_status()
        turn = user_turn("Where is the red cup?", Image.new("RGB", (64, 48), (200, 30, 30)))
        answers.append(ask(url, turn, options))
    return answers


async def _send_all(
    url: str, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], Counter[tuple[str, int]]]:
    generator = Generator(args.seed)
    faults: list[dict[str, Any]] = []
    counts: Counter[tuple[str, int]] = Counter()
    gate = asyncio.Semaphore(args.concurrent)

    async def send(client: httpx.AsyncClient, number: int) -> None:
        async with gate:
            request = generator.request(number)
            status, text = await _answer(client, request)
        counts[request.path, status] += 1
        if (told := _fault(status, text)) is not None:
            faults.append({"number": number, "path": request.path, "status": status, "told": told})

    # A connection that is kept may be closed by the server while a request is on its way.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        numbers = range(args.first, args.first + args.requests)
        waiting = [asyncio.ensure_future(send(client, number)) for number in numbers]
        done = asyncio.as_completed(waiting)
        for one in track(done, total=len(waiting), description="requests"):
            await one
    return faults, counts


async def _answer(client: httpx.AsyncClient, request: Generated) -> tuple[int, str]:
    try:
        response = await client.post(
            request.path,
            content=json.dumps(request.body),
            headers={"Content-Type": "application/json"},
        )
    except httpx.HTTPError as error:
        return 0, repr(error)
    return response.status_code, response.text


def _fault(status: int, text: str) -> str | None:
    """What is wrong with an answer, if anything."""
    if status == 200:
        # A stream's error comes after its status.
        return text[-500:] if '"error"' in text and "data: " in text else None
    if status not in _REFUSALS:
        return text[-500:]
    try:
        error = json.loads(text)
        told = (error.get("error") or error)["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[-500:]
    is_sentence = isinstance(told, str) and len(told) > 10 and "Traceback" not in told
    return None if is_sentence else text[-500:]


if __name__ == "__main__":
    sys.exit(main())

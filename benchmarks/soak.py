"""Many requests over many images with small caches: memory, hit rate, and the answers themselves.

One server with caches for a few images and texts answers every request, one after the other, so
that a textbook LRU predicts each hit. A second one without caches answers the same requests, and
the answers are compared. Memory is that of the server's processes; vLLM's own cache of inputs is
kept small.
"""

import argparse
import json
import random
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from openai import OpenAI
from rich.console import Console
from rich.progress import track
from transformers import AutoConfig

from benchmarks.machine import Machine, OtherLoad, command_line, package_versions
from benchmarks.workload import Workload
from vllm_litelvlm.demo.checkpoint import SMALL, TINY, build_checkpoint
from vllm_litelvlm.demo.server import Server, serve
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.options import OPTIONS_KEY

GEOMETRIES = {"tiny": TINY, "small": SMALL}
_ARGUMENTS = [
    "--served-model-name=model",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--mm-processor-cache-gb=0.02",
]
_WITHOUT = {"feature_cache_gb": 0, "pixel_cache_gb": 0, "text_cache": 0}
#: How often memory is read in the course of a run.
_READINGS = 40


@dataclass(frozen=True)
class Request:
    """A question, different from all others, about one of the images."""

    image: int
    question: str
    budget: int


@dataclass(frozen=True)
class Answer:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """What one server answered; ``memory`` is in MiB, by the number of requests before."""

    answers: list[Answer]
    memory: list[tuple[int, float]]
    hits: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    console = Console(stderr=True)
    machine, other_load = Machine.describe(), OtherLoad()
    try:
        result = soak(options, console)
    except LiteLVLMError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    described = {
        "command": command_line("benchmarks.soak", given),
        "machine": asdict(machine),
        "versions": package_versions(),
        "other_load": other_load.cores(),
        **result,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(described, indent=1) + "\n")
    _plot(result, options.output / "memory.png", str(machine))
    print(table(result))
    console.print(f"Written to {options.output}: results.json, memory.png")
    return 0 if result["different_answers"] == 0 else 1


def soak(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both runs, and how they compare."""
    checkpoint = build_checkpoint(options.output / "checkpoint", GEOMETRIES[options.geometry])
    workload = Workload(options.seed)
    images = [prompt.image for prompt in workload.take(options.images)]
    requests = draw(options.requests, options.images, options.seed)
    config = AutoConfig.from_pretrained(checkpoint.llava).vision_config
    small = _small_caches(config, options.places, options.texts)
    runs = {}
    for name, caches in (("small caches", small), ("no caches", _WITHOUT)):
        with serve(
            checkpoint.llava,
            clip_model=checkpoint.clip,
            options=caches,
            arguments=_ARGUMENTS,
            environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
            log=options.output / f"{name.replace(' ', '-')}.log",
        ) as server:
            runs[name] = _run(server, requests, images, name, console)
    cached, plain = runs["small caches"], runs["no caches"]
    different = [
        number
        for number, (one, other) in enumerate(zip(cached.answers, plain.answers, strict=True))
        if one.token_ids != other.token_ids
    ]
    gap = max(
        abs(left - right)
        for one, other in zip(cached.answers, plain.answers, strict=True)
        if one.token_ids == other.token_ids
        for left, right in zip(one.logprobs, other.logprobs, strict=True)
    )
    return {
        "requests": options.requests,
        "images": options.images,
        "caches": small,
        "predicted_image_hits": predicted_hits(requests, options.places),
        "hits": {name: run.hits for name, run in runs.items()},
        "memory_mib": {name: run.memory for name, run in runs.items()},
        "different_answers": len(different),
        "largest_logprob_gap": gap,
    }


def draw(requests: int, images: int, seed: int) -> list[Request]:
    """Requests of which a few images get many, as in life: image k is drawn with weight 1 / k."""
    generator = random.Random(seed)
    weights = [1 / (1 + number) for number in range(images)]
    chosen = generator.choices(range(images), weights, k=requests)
    return [
        Request(image, f"Question {number}: what is it?", generator.choice([29, 64, 128]))
        for number, image in enumerate(chosen)
    ]


def predicted_hits(requests: Sequence[Request], places: int) -> int:
    """Hits of a least-recently-used cache of so many images."""
    kept, hits = OrderedDict[int, None](), 0
    for request in requests:
        hits += request.image in kept
        kept[request.image] = None
        kept.move_to_end(request.image)
        if len(kept) > places:
            kept.popitem(last=False)
    return hits


def growth(memory: Sequence[tuple[int, float]]) -> float:
    """MiB by which the mean of a run's last fifth exceeds its middle."""
    values = [value for _, value in memory]
    middle, last = values[len(values) // 2], values[-max(1, len(values) // 5) :]
    return sum(last) / len(last) - middle


def table(result: dict[str, Any]) -> str:
    lines = [
        "| | small caches | no caches |",
        "| --- | ---: | ---: |",
    ]
    hits, memory = result["hits"], result["memory_mib"]
    names = ("small caches", "no caches")
    rows = {
        "image feature hits": [f"{hits[name]['feature']:.0f}" for name in names],
        "preprocessed image hits": [f"{hits[name]['pixel']:.0f}" for name in names],
        "memory at the middle, MiB": [
            f"{memory[name][len(memory[name]) // 2][1]:.0f}" for name in names
        ],
        "growth in the second half, MiB": [f"{growth(memory[name]):+.1f}" for name in names],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(
        [
            *lines,
            "",
            f"{result['requests']} requests over {result['images']} images; an LRU of "
            f"the same size predicts {result['predicted_image_hits']} image hits. "
            f"{result['different_answers']} answers differ; log-probabilities of the others by at "
            f"most {result['largest_logprob_gap']:.1e}.",
        ]
    )


def _small_caches(config: Any, places: int, texts: int) -> dict[str, float]:
    """Server options whose caches have room for so many images and texts, and a bit."""
    patches = (config.image_size // config.patch_size) ** 2
    features = 4 * ((1 + patches) * config.hidden_size + patches)
    pixels = 3 * config.image_size**2
    return {
        "feature_cache_gb": (places + 0.5) * features / 2**30,
        "pixel_cache_gb": (places + 0.5) * pixels / 2**30,
        "text_cache": texts,
    }


def _run(
    server: Server, requests: Sequence[Request], images: Sequence[str], name: str, console: Console
) -> Run:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
    answers, memory = [], []
    every = max(1, len(requests) // _READINGS)
    for number, request in enumerate(track(requests, name, console=console)):
        if number % every == 0:
            memory.append((number, _memory()))
        answers.append(_ask(client, request, images[request.image]))
    memory.append((len(requests), _memory()))
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    hits = {
        cache: next(
            (
                float(line.rsplit(" ", 1)[1])
                for line in lines
                if line.startswith(f"litelvlm_{cache}_cache_hits_total ")
            ),
            0.0,
        )
        for cache in ("feature", "pixel", "text")
    }
    return Run(answers, memory, hits)


def _ask(client: OpenAI, request: Request, image: str) -> Answer:
    content: Any = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": request.question},
    ]
    completion: Any = client.chat.completions.create(
        model="model",
        messages=[{"role": "user", "content": content}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        extra_body={
            "return_token_ids": True,
            "mm_processor_kwargs": {OPTIONS_KEY: {"budget": request.budget}},
        },
    )
    choice = completion.choices[0]
    return Answer(
        tuple(choice.token_ids), tuple(entry.logprob for entry in choice.logprobs.content)
    )


def _memory() -> float:
    """Resident memory of this process's children, MiB."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # ended since it was listed
    return total / 2**20


def _plot(result: dict[str, Any], path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, memory in result["memory_mib"].items():
        axes.plot(*zip(*memory, strict=True), label=name)
    axes.set_xlabel("Requests answered")
    axes.set_ylabel("Memory of the server, MiB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(path, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--requests", type=int, default=2000, help="how many, each with a text of its own")
    add("--images", type=int, default=300, help="how many they are about")
    add("--places", type=int, default=30, help="images that the caches have room for")
    add("--texts", type=int, default=50, help="texts that the text cache has room for")
    add("--geometry", choices=sorted(GEOMETRIES), default="tiny", help="of the built checkpoint")
    add("--seed", type=int, default=0, help="of images and requests")
    add("--output", type=Path, default=Path("benchmarks/results/soak"), help="folder")
    return parser


if __name__ == "__main__":
    torch.set_num_threads(1)  # the servers are what is to run
    sys.exit(main())

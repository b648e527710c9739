"""The demo: the real server, the OpenAI client, and questions about drawn scenes.

Each is answered from all tokens, and at every smaller budget from those of the paper's method,
packed as in the paper, and from those of this package's own, each at its place in the image.
"""

import base64
import io
import json
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from openai import APIError, OpenAI
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from vllm_litelvlm.demo.overlay import (
    ANSWER_COLOUR,
    as_the_tower_sees_it,
    draw_box,
    draw_kept_patches,
    with_caption,
)
from vllm_litelvlm.demo.report import Measured, print_report, save_contact_sheets
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.evaluation.scenes.answers import is_right, read_box
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset
from vllm_litelvlm.options import OPTIONS_KEY, PruningOptions, parse
from vllm_litelvlm.pruning.keep_all import KeepAll

#: The model that ships, which ``litelvlm train`` made; its CLIP is named in its configuration.
SHIPPED = Path(__file__).parent / "model"
#: The same that answers with masks, too; its CLIP is the other's.
SHIPPED_MASKS = Path(__file__).parent / "masks"

_NAME = "demo"
_ANSWER_TOKENS = 12
#: Scenes of the test split, and how many questions about each one.
_SCENES, _QUESTIONS = (0, 1, 2), 6
_SERVER_OPTIONS = {
    # The same scene is asked about several times; a cache would favour the later rows.
    "feature_cache_gb": 0,
    "text_cache": 0,
    "pixel_cache_gb": 0,
    "positions": "original",  # what some requests ask for
}


class DemoError(LiteLVLMError, RuntimeError):
    """The demo cannot run or go on; the message says what to change."""


class Way(NamedTuple):
    """What a request asks for, by the options' names."""

    budget: int
    method: str
    positions: str


@dataclass(frozen=True)
class Target:
    """The server under demonstration and where its worker writes selections down."""

    url: str
    client: OpenAI
    trace: Path
    grid: int
    patch: int


def run_demo(
    output: Path,
    budgets: Sequence[int],
    model: Path | None = None,
    clip_model: Path | str | None = None,
    console: Console | None = None,
    port: int | None = None,
) -> list[Measured]:
    """Serve a model, ask, print every answer, and save the pictures under ``output``.

    Without ``model`` it is the one that ships. Raises ServerError when the server does not start,
    OptionsError for a budget that the images do not have, and DemoError for a ``model`` that is no
    LLaVA folder or a request that the server refuses.
    """
    console = console or Console()
    budgets = list(dict.fromkeys(budgets))
    model = SHIPPED if model is None else model
    grid, patch = _read_grid(model)
    for budget in budgets:
        parse(PruningOptions, {"budget": budget}).budget_tokens(grid**2)
    pictures = output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    trace = output / "trace.jsonl"
    trace.unlink(missing_ok=True)
    log = output / "server.log"
    arguments = [f"--served-model-name={_NAME}", "--max-model-len=2048", "--enforce-eager"]
    arguments += ["--no-enable-prefix-caching"]
    with ExitStack() as stack:
        with console.status(f"Starting vllm serve {model} --plugin litelvlm (log: {log}) ..."):
            server = stack.enter_context(
                serve(
                    model,
                    clip_model=clip_model,
                    options=_SERVER_OPTIONS,
                    arguments=arguments,
                    environment={
                        "VLLM_LITELVLM_TRACE": str(trace.resolve()),
                        "VLLM_SERVER_DEV_MODE": "1",  # the endpoints of _forget
                    },
                    log=log,
                    port=port,
                )
            )
        target = Target(
            url=server.url,
            client=OpenAI(base_url=f"{server.url}/v1", api_key="none"),
            trace=trace,
            grid=grid,
            patch=patch,
        )
        try:
            rows = _ask_everything(target, ways_of(budgets, grid**2), pictures, console)
        except APIError as error:
            raise DemoError(f"{error}; the server's log is {log}.") from error
    print_report(rows, console)
    for sheet in save_contact_sheets(rows, pictures):
        console.print(f"Pictures (red: by the text, green: without it): {sheet}")
    return rows


def ways_of(budgets: Sequence[int], patches: int) -> list[Way]:
    """The methods that are compared, at each budget; nothing is to choose where it is all."""
    ways = []
    for budget in budgets:
        if budget == patches:
            ways.append(Way(budget, KeepAll.name, "compact"))
        else:
            ways += [Way(budget, "litelvlm", "compact"), Way(budget, "fovea", "original")]
    return ways


def _ask_everything(
    target: Target, ways: Sequence[Way], pictures: Path, console: Console
) -> list[Measured]:
    dataset = SceneDataset("test", 1, questions=_QUESTIONS)
    about = {number: dataset.about(number) for number in _SCENES}
    rows = []
    with Progress(console=console, transient=True) as progress:
        total = sum(map(len, about.values())) * len(ways)
        task = progress.add_task("Asking (after a warm-up)", total=total)
        for way in ways:  # each prompt length and method has a first-time cost of its own
            _ask(target, Image.new("RGB", (32, 32)), "Ready?", way)
        for scene, samples in about.items():
            for sample in samples:
                for way in ways:
                    _forget(target)
                    traced = len(_read_trace(target))
                    said = _ask(target, sample.image, sample.prompt, way)
                    row = Measured(
                        scene,
                        sample,
                        way.budget,
                        way.method,
                        *said,
                        is_right(sample, said.answer),
                        pictures / f"{sample.name}-{way.budget}-{way.method}.png",
                    )
                    _picture(target, row, _read_trace(target)[traced:]).save(row.picture)
                    rows.append(row)
                    progress.advance(task)
    return rows


class _Said(NamedTuple):
    prompt_tokens: int
    first_token: float
    seconds: float
    answer: str


def _ask(target: Target, image: Image.Image, question: str, way: Way) -> _Said:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content: Any = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    began = time.perf_counter()
    first_token, prompt_tokens, answer = None, 0, ""
    for chunk in target.client.chat.completions.create(
        model=_NAME,
        messages=[{"role": "user", "content": content}],
        max_tokens=_ANSWER_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"mm_processor_kwargs": {OPTIONS_KEY: way._asdict()}},
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            first_token = first_token or time.perf_counter() - began
            answer += chunk.choices[0].delta.content
        if chunk.usage:
            prompt_tokens = chunk.usage.prompt_tokens
    seconds = time.perf_counter() - began
    return _Said(prompt_tokens, first_token or seconds, seconds, " ".join(answer.split()))


def _read_grid(model: Path) -> tuple[int, int]:
    """Patches a side of the tower's grid, and pixels a side of a patch."""
    file = model / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["vision_config"]
        return config["image_size"] // config["patch_size"], config["patch_size"]
    except (OSError, ValueError, KeyError) as error:
        raise DemoError(
            f"{file} does not describe a vision tower ({type(error).__name__}: {error}); "
            "--model takes the folder of a LLaVA-1.5 checkpoint, or leave it out for the one that "
            "ships."
        ) from None


def _read_trace(target: Target) -> list[str]:
    if not target.trace.exists():
        return []
    return target.trace.read_text(encoding="utf-8").splitlines()


def _forget(target: Target) -> None:
    """Empty vLLM's image caches, so that every row pays for its own image.

    The plugin's are off for the same reason. Keep-all would otherwise encode a scene for its first
    question only.
    """
    for cache in ("mm", "encoder"):
        request = urllib.request.Request(f"{target.url}/reset_{cache}_cache", method="POST")
        urllib.request.urlopen(request, timeout=60).close()


def _picture(target: Target, row: Measured, traced: Sequence[str]) -> Image.Image:
    """What the running engine kept, from its line in the trace (keep-all leaves none), and said."""
    sample, patches = row.sample, target.grid**2
    guided = None
    if traced:
        line = json.loads(traced[-1])
        kept, guided = line["kept"], line["guided"]
        drawn = draw_kept_patches(sample.image, kept, guided, target.grid, target.patch)
        tokens = len(kept)
    else:
        seen = as_the_tower_sees_it(sample.image, target.grid * target.patch)
        drawn, tokens = seen.resize((seen.width * 2, seen.height * 2)), patches
    if sample.box is not None and (box := read_box(row.answer, *sample.image.size)) is not None:
        draw_box(drawn, box, sample.image.width)
    said = f"{row.answer}   ({row.method}, {tokens} of {patches} tokens)"
    return with_caption(drawn, row.question, guided, (said, ANSWER_COLOUR[row.right]))

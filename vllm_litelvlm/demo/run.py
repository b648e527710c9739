"""The demo: the real server, the OpenAI client, three questions about two photographs."""

import base64
import io
import json
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import APIError, OpenAI
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from skimage import data

from vllm_litelvlm.demo.checkpoint import SMALL, build_checkpoint
from vllm_litelvlm.demo.overlay import as_the_tower_sees_it, draw_kept_patches, with_caption
from vllm_litelvlm.demo.report import QUESTIONS, Measured, print_report, save_contact_sheets
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.options import PruningOptions, parse

_MODEL = "demo"
_ANSWER_TOKENS = 12
#: The same photograph is asked about several times; a cache would favour the later rows.
_EACH_FOR_ITSELF = {
    "feature_cache_gb": 0,
    "text_cache": 0,
    "pixel_cache_gb": 0,
    "repeat": "prune",
}


class DemoError(LiteLVLMError, RuntimeError):
    """The demo cannot run or go on; the message says what to change."""


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
    """Serve a model, ask, print a row for each request, and save the pictures under ``output``.

    Without ``model`` a checkpoint with random weights is built. Raises ServerError when the
    server does not start, OptionsError for a budget that the images do not have, and DemoError
    for a ``model`` that is no LLaVA folder or a request that the server refuses.
    """
    console = console or Console()
    budgets = list(dict.fromkeys(budgets))
    grid, patch = (SMALL.image_size // SMALL.patch_size, SMALL.patch_size)
    if model is not None:
        grid, patch = _read_grid(model)
    for budget in budgets:
        parse(PruningOptions, {"budget": budget}).budget_tokens(grid**2)
    pictures = output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    trace = output / "trace.jsonl"
    trace.unlink(missing_ok=True)
    if model is None:
        with console.status("Building a checkpoint in LLaVA-1.5's layout ..."):
            built = build_checkpoint(output / "checkpoint", SMALL)
        model, clip_model = built.llava, built.clip
        console.print(
            "[yellow]The demo's weights are random[/]: its answers are nonsense, and the patches "
            "that it really kept follow no meaning. Visual tokens count as in LLaVA-1.5; "
            "times are measured, for this small model on this machine."
        )
    log = output / "server.log"
    arguments = [f"--served-model-name={_MODEL}", "--max-model-len=2048", "--enforce-eager"]
    arguments += ["--no-enable-prefix-caching"]
    with ExitStack() as stack:
        with console.status(f"Starting vllm serve {model} --plugin litelvlm (log: {log}) ..."):
            server = stack.enter_context(
                serve(
                    model,
                    clip_model=clip_model,
                    options=_EACH_FOR_ITSELF,
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
            rows = _ask_everything(target, budgets, pictures, console)
        except APIError as error:
            raise DemoError(f"{error}; the server's log is {log}.") from error
    print_report(rows, console)
    for sheet in save_contact_sheets(rows, pictures):
        console.print(f"Pictures (red: similarity, green: context): {sheet}")
    return rows


def _ask_everything(
    target: Target, budgets: Sequence[int], pictures: Path, console: Console
) -> list[Measured]:
    rows = []
    with Progress(console=console, transient=True) as progress:
        total = len(QUESTIONS) * 3 * len(budgets)
        task = progress.add_task("Asking (after one request a budget to warm up)", total=total)
        for budget in budgets:  # each prompt length has a first-time cost of its own
            _ask(target, Image.new("RGB", (32, 32)), "Ready?", budget)
        for name, questions in QUESTIONS.items():
            photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
            for number, question in enumerate(questions, start=1):
                for budget in budgets:
                    picture = pictures / f"{name}-{number}-{budget}.png"
                    _forget(target)
                    traced = len(_read_trace(target))
                    answer = _ask(target, photograph, question, budget)
                    kept = _read_trace(target)[traced:]
                    _save_picture(target, photograph, question, kept, picture)
                    rows.append(Measured(name, question, budget, *answer, picture))
                    progress.advance(task)
    return rows


def _ask(
    target: Target, image: Image.Image, question: str, budget: int
) -> tuple[int, float, float, str]:
    """Prompt tokens, seconds to the first token and to the end, and the answer."""
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
        model=_MODEL,
        messages=[{"role": "user", "content": content}],
        max_tokens=_ANSWER_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={
            "mm_processor_kwargs": {"litelvlm": {"budget": budget}},
            "ignore_eos": True,
        },
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            first_token = first_token or time.perf_counter() - began
            answer += chunk.choices[0].delta.content
        if chunk.usage:
            prompt_tokens = chunk.usage.prompt_tokens
    seconds = time.perf_counter() - began
    return prompt_tokens, first_token or seconds, seconds, " ".join(answer.split())


def _read_grid(model: Path) -> tuple[int, int]:
    """Patches a side of the tower's grid, and pixels a side of a patch."""
    file = model / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["vision_config"]
        return config["image_size"] // config["patch_size"], config["patch_size"]
    except (OSError, ValueError, KeyError) as error:
        raise DemoError(
            f"{file} does not describe a vision tower ({type(error).__name__}: {error}); "
            "--model takes the folder of a LLaVA-1.5 checkpoint, or leave it out to build one."
        ) from None


def _read_trace(target: Target) -> list[str]:
    if not target.trace.exists():
        return []
    return target.trace.read_text(encoding="utf-8").splitlines()


def _forget(target: Target) -> None:
    """Empty vLLM's image caches, so that every row pays for its own image.

    The plugin's are off for the same reason. Keep-all would otherwise encode a photograph for its
    first question only.
    """
    for cache in ("mm", "encoder"):
        request = urllib.request.Request(f"{target.url}/reset_{cache}_cache", method="POST")
        urllib.request.urlopen(request, timeout=60).close()


def _save_picture(
    target: Target, photograph: Image.Image, question: str, traced: Sequence[str], path: Path
) -> None:
    """Draw what the running engine kept, from its line in the trace; keep-all leaves none."""
    patches = target.grid**2
    if not traced:
        seen = as_the_tower_sees_it(photograph, target.grid * target.patch)
        with_caption(
            seen.resize((seen.width * 2, seen.height * 2)),
            f"{question}   all {patches} tokens kept",
        ).save(path)
        return
    line = json.loads(traced[-1])
    kept, guided = line["kept"], line["guided"]
    drawn = draw_kept_patches(photograph, kept, guided, target.grid, target.patch)
    title = f"{question}   {len(kept)} of {patches} tokens"
    with_caption(drawn, title, guided).save(path)

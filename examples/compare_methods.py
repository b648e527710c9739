"""One image, one text, every method: a grid of pictures of what each of them keeps.

    python examples/compare_methods.py llava-hf/llava-1.5-7b-hf photo.jpg "Where is the red cup?"

Runs with transformers, so that the methods inside the language model are there too; no server is
needed. Red patches were chosen with the text in mind, green ones without. A merged token is drawn
at the patch that it was merged into.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from vllm_litelvlm.demo.overlay import as_the_tower_sees_it, draw_kept_patches, with_caption
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Question
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.prumerge import automatic_count
from vllm_litelvlm.pruning.registry import (
    decoder_method_names,
    decoder_pruner_class,
    method_names,
    pruner_class,
)

YARDSTICK = "litelvlm"
COLUMNS, GAP = 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name or folder of a LLaVA-1.5 checkpoint")
    parser.add_argument("image", type=Path, help="path of a photograph")
    parser.add_argument("text", help="what is asked, and what guides the methods that read it")
    parser.add_argument("--clip-model", help="the vision tower's CLIP, if not the published one")
    parser.add_argument("--budget", type=int, default=128, help="visual tokens to keep")
    every = [*method_names(), *decoder_method_names()]
    parser.add_argument("--methods", nargs="+", choices=every, default=every, metavar="METHOD")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("methods.png"))
    arguments = parser.parse_args()

    console = Console()
    backend = TransformersBackend(arguments.model, arguments.clip_model)
    image = Image.open(arguments.image).convert("RGB")
    try:
        answers = ask(backend, image, arguments, console)
    except OptionsError as error:
        parser.error(str(error))
    shown = {method: answers[method] for method in arguments.methods if method in answers}
    kept = {method: patches(answer, backend.grid) for method, answer in answers.items()}
    shared = {method: len(kept[method].keys() & kept[YARDSTICK].keys()) for method in shown}
    print_table(shown, shared, console)
    if "prumerge" in arguments.methods:
        signals = backend.signals(image, [], frozenset({Signal.FEATURES, Signal.LAST_ATTENTION}))
        count = int(automatic_count(signals[Signal.LAST_ATTENTION]))
        console.print(f"Left to itself, prumerge would keep {count} + 1 tokens of this image.")
    pictures = [
        with_caption(photograph(image, backend), f"{shorten(arguments.text, 40)}\nthe photograph")
    ]
    for method, answer in shown.items():
        pictures.append(
            picture(image, backend, kept[method], caption(method, answer, shared, kept))
        )
    in_grid(pictures).save(arguments.output)
    console.print(f"Saved {arguments.output}")


def ask(
    backend: TransformersBackend,
    image: Image.Image,
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Answer]:
    """Answers by method, the yardstick's always among them.

    Methods of the decoder that cannot run with this budget on this model are told and left out.
    """
    answers = {}
    methods = dict.fromkeys([YARDSTICK, *arguments.methods])
    for method in track(methods, "Asking", console=Console(stderr=True), transient=True):
        options = {"method": method, "budget": arguments.budget}
        question = Question(image, arguments.text, options, arguments.max_tokens)
        try:
            [answers[method]] = backend.answer([question])
        except OptionsError as error:
            if method not in decoder_method_names():
                raise
            console.print(f"{method} is left out: {error}", markup=False)
    return answers


def patches(answer: Answer, grid: int) -> dict[int, bool]:
    """The patches whose place a token takes, and whether the text had a say in it."""
    assert answer.kept is not None
    assert answer.guided is not None
    together = zip(answer.kept, answer.guided, strict=True)
    return {place: guided for place, guided in together if 0 <= place < grid**2}


def print_table(shown: dict[str, Answer], shared: dict[str, int], console: Console) -> None:
    table = Table()
    for heading in ("method", "paper", "tokens", f"shared with {YARDSTICK}", "answer"):
        number = heading not in ("method", "paper", "answer")
        table.add_column(
            heading,
            justify="right" if number else "left",
            no_wrap=heading == "method",
            max_width=9 if number else None,
        )
    for method, answer in shown.items():
        inside = method in decoder_method_names()
        paper = (decoder_pruner_class if inside else pruner_class)(method).paper
        said = Text(" ".join(answer.text.split()))
        table.add_row(method, paper, str(answer.visual_tokens), str(shared[method]), said)
    console.print(table)


def photograph(image: Image.Image, backend: TransformersBackend) -> Image.Image:
    return as_the_tower_sees_it(image, backend.grid * backend.patch_size)


def picture(
    image: Image.Image, backend: TransformersBackend, kept: dict[int, bool], title: str
) -> Image.Image:
    drawn = draw_kept_patches(
        image, list(kept), list(kept.values()), backend.grid, backend.patch_size
    )
    return with_caption(drawn.reduce(2), title)


def caption(
    method: str, answer: Answer, shared: dict[str, int], kept: dict[str, dict[int, bool]]
) -> str:
    lines = f"{method}: {answer.visual_tokens} tokens"
    if method in decoder_method_names():
        lines += " in the last layer"
    lines += f"\n{shared[method]} shared with {YARDSTICK}"
    nowhere = answer.visual_tokens - len(kept[method])
    return f"{lines}, {nowhere} without a patch" if nowhere else lines


def in_grid(pictures: Sequence[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    rows = math.ceil(len(pictures) / COLUMNS)
    sheet = Image.new("RGB", (GAP + COLUMNS * (width + GAP), GAP + rows * (height + GAP)), "white")
    for number, one in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        sheet.paste(one, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


if __name__ == "__main__":
    main()

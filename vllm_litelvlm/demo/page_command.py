"""``litelvlm page``: the arguments, and the pictures of the page that they name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_litelvlm.demo.page import Shot

HELP = "serve a model and say where its page is, or take a screenshot of that"
_SCHEMES = ("light", "dark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the command's arguments on a parser, such as a subcommand's."""
    parser.add_argument("--model", help="hub name or folder; if left out the model that ships")
    parser.add_argument("--clip-model", help="hub name or folder of the vision tower's CLIP")
    parser.add_argument("--port", type=int, help="port of the server; a free one if left out")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("litelvlm-demo"),
        help="folder for the server's log (%(default)s)",
    )
    parser.add_argument(
        "--screenshot",
        type=Path,
        metavar="FILE",
        help="ask on the page in a headless Chromium, write a PNG, and end",
    )
    parser.add_argument(
        "--width",
        type=int,
        nargs="+",
        default=[1280],
        metavar="PIXELS",
        help="of the screenshot's window (1280); each of several goes into the file's name",
    )
    parser.add_argument(
        "--scheme",
        nargs="+",
        choices=_SCHEMES,
        default=[_SCHEMES[0]],
        help="colours of the screenshot (light); each of both goes into the file's name",
    )
    parser.add_argument("--method", help="of the screenshot; the server's if left out")
    parser.add_argument("--budget", type=int, help="of the screenshot; the server's if left out")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of vllm serve, behind --")


def run(chosen: argparse.Namespace) -> None:
    """Serve until interrupted, or for the screenshots. Raises a LiteLVLMError."""
    from vllm_litelvlm.demo.page import show_page

    try:
        show_page(
            chosen.output,
            chosen.model,
            chosen.clip_model,
            port=chosen.port,
            shots=shots_of(chosen),
            arguments=chosen.arguments,
        )
    except KeyboardInterrupt:
        print("The server was stopped.")


def shots_of(chosen: argparse.Namespace) -> "list[Shot]":
    """One for each width and scheme."""
    from vllm_litelvlm.demo.page import Shot

    file: Path | None = chosen.screenshot
    if file is None:
        return []
    shots = []
    for width in chosen.width:
        for scheme in chosen.scheme:
            said = [str(width)] * (len(chosen.width) > 1) + [scheme] * (len(chosen.scheme) > 1)
            named = file.with_name("-".join([file.stem, *said]) + ".png")
            shots.append(Shot(named, width, scheme, chosen.budget, chosen.method))
    return shots

"""The ``litelvlm`` command: arguments to options to calls."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_litelvlm import __version__
from vllm_litelvlm.convert import command as conversion
from vllm_litelvlm.demo import page_command as page
from vllm_litelvlm.demo.training import command as training
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.evaluation.analysis import command as analysis
from vllm_litelvlm.evaluation.command import arguments as evaluation

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. Errors of the package are told in a sentence."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = _parser().parse_args(given)
    try:
        match chosen.command:
            case "demo":
                _demo(chosen)
            case "page":
                _stop_servers_on_sigterm()
                page.run(chosen)
            case "evaluate":
                _evaluate(chosen, given)
            case "analyze":
                analysis.run(chosen)
            case "train":
                training.run(chosen)
            case "convert":
                conversion.run(chosen)
            case "families":
                _families()
            case _:
                _methods()
    except LiteLVLMError as error:
        print(f"litelvlm: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="litelvlm",
        description="Text-guided visual-token pruning for vLLM. To serve a model: "
        "vllm serve MODEL --plugin litelvlm",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="serve the small model that ships and ask it about drawn scenes at several budgets",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--output", type=Path, default=Path("litelvlm-demo"), help="folder for everything written"
    )
    demo.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[576, 128, 64],
        metavar="TOKENS",
        help="visual tokens to keep of each image",
    )
    demo.add_argument(
        "--model",
        type=Path,
        help="folder of a LLaVA-1.5 checkpoint; if left out the one that ships",
    )
    demo.add_argument("--clip-model", help="hub name or folder of the vision tower's CLIP")
    demo.add_argument("--port", type=int, help="port of the server; a free one if left out")
    shown = commands.add_parser(
        "page", help=page.HELP, usage="%(prog)s [options] [-- arguments of vllm serve]"
    )
    page.add_arguments(shown)
    commands.add_parser("families", help="list the models that can be served, and what each offers")
    commands.add_parser("methods", help="list the pruning methods and their options")
    evaluate = commands.add_parser(
        "evaluate",
        help="compare methods and budgets on a data set",
        usage="%(prog)s [options] [-- arguments of vllm serve]",
    )
    evaluation.add_arguments(evaluate)
    analyze = commands.add_parser("analyze", help=analysis.HELP, description=analysis.HELP)
    analysis.add_arguments(analyze)
    train = commands.add_parser("train", help=training.HELP, description=training.HELP)
    training.add_arguments(train)
    convert = commands.add_parser("convert", help=conversion.HELP, description=conversion.HELP)
    conversion.add_arguments(convert)
    return parser


def _evaluate(chosen: argparse.Namespace, given: Sequence[str]) -> None:
    from vllm_litelvlm.demo.server import serve
    from vllm_litelvlm.evaluation.command.run import evaluate

    _stop_servers_on_sigterm()
    evaluate(chosen, serve, shlex.join(["litelvlm", *given]))


def _stop_servers_on_sigterm() -> None:
    """End by an exception: a plain SIGTERM would skip the `with` block that stops a server."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _demo(chosen: argparse.Namespace) -> None:
    try:
        from vllm_litelvlm.demo.run import run_demo
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise LiteLVLMError(
            f"the demo needs {error.name}; install it: pip install 'vllm-litelvlm[demo]'"
        ) from None
    _stop_servers_on_sigterm()
    run_demo(chosen.output, chosen.budgets, chosen.model, chosen.clip_model, port=chosen.port)


def _methods() -> None:
    from rich.console import Console
    from rich.table import Table

    from vllm_litelvlm.options import COMMON_OPTIONS, PruningOptions
    from vllm_litelvlm.pruning.registry import (
        decoder_method_names,
        decoder_pruner_class,
        method_names,
        pruner_class,
    )

    table = Table("method or option", "default", "paper, or allowed values")

    def add_options(fields: "Mapping[str, FieldInfo]") -> None:
        for option, field in fields.items():
            table.add_row(f"  {option}", json.dumps(field.default), field.description or "")
        table.add_section()

    for name in method_names():
        pruner = pruner_class(name)
        reads = "is guided by the text" if pruner.reads_text else "does not read the text"
        text = "cannot do without a text" if pruner.requires_text else reads
        if pruner.layered:
            text += "; chooses in layers"
        table.add_row(f"[bold]{name}[/]", "", f"[bold]{pruner.paper}[/]; {text}")
        add_options(pruner.model_fields)
    table.add_row("[bold]options of every method[/]")
    add_options({option: PruningOptions.model_fields[option] for option in COMMON_OPTIONS})
    for name in decoder_method_names():
        decoder = decoder_pruner_class(name)
        only = "prunes inside the language model: in the evaluation only, not in vLLM"
        table.add_row(f"[bold]{name}[/]", "", f"[bold]{decoder.paper}[/]; {only}")
        add_options(decoder.model_fields)
    Console().print(table)


def _families() -> None:
    from rich.console import Console
    from rich.table import Table

    with Console(stderr=True).status("Loading vLLM's models ..."):
        from vllm_litelvlm.plugin.served import MODELS, family
        from vllm_litelvlm.pruning.registry import method_names, offered_methods

        families = {architecture: family(architecture) for architecture in MODELS}
    table = Table.grid(padding=(0, 2))
    for architecture, found in families.items():
        for traits in found.kinds():
            lacking = sorted({*method_names()} - {*offered_methods(traits)})
            table.add_row(f"[bold]{traits.family}[/]", f"[bold]{architecture}[/]")
            table.add_row("  sees", found.media)
            table.add_row("  guided by", found.guidance)
            table.add_row("  cannot run", ", ".join(lacking) or "-")
            table.add_row("  two layers", "yes" if traits.layered else "no")
            table.add_row("  positions", f"{found.defaults.positions} by default", end_section=True)
            table.add_row()
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

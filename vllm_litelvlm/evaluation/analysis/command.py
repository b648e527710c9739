"""``litelvlm analyze``: the arguments, the data set they name, and the run."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.evaluation.analysis.budgets import budget, named
from vllm_litelvlm.evaluation.command.arguments import SPLITS, count

#: Names of the analyses; what they are is loaded when they run.
NAMES = ("ranks", "correlation", "sink", "extremes", "kept")
HELP = (
    "look at how a CLIP, SigLIP or Qwen-VL ranks the patches that a text refers to (the paper's "
    "figures)"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status. Errors of the package are told in a sentence."""
    parser = argparse.ArgumentParser(prog="litelvlm analyze", description=HELP)
    add_arguments(parser)
    try:
        run(parser.parse_args(arguments))
    except LiteLVLMError as error:
        print(f"litelvlm: {error}", file=sys.stderr)
        return 1
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the command's arguments on a parser, such as a subcommand's."""
    add = parser.add_argument
    add("model", help="hub name or folder of a CLIP, MetaCLIP, SigLIP, SigLIP-2 or Qwen-VL")
    add(
        "--dataset",
        default="scenes",
        metavar="NAME",
        help="scenes (default), refcoco, refcoco+, refcocog; or MODULE:NAME of a Dataset, or of "
        "what makes one when called with the split",
    )
    add("--split", choices=SPLITS, default="val", help="of the data set (%(default)s)")
    add("--data", type=Path, metavar="FOLDER", help="where refcoco, refcoco+ and refcocog lie")
    add(
        "--analyses",
        nargs="+",
        choices=NAMES,
        default=list(NAMES),
        metavar="NAME",
        help=f"of {', '.join(NAMES)} (default: all)",
    )
    add(
        "--samples",
        type=count,
        default=500,
        metavar="N",
        help="drawn at random, some neighbours at a time; of scenes the first (%(default)s)",
    )
    add("--seed", type=int, default=0, help="of the draw (%(default)s)")
    add("--batch", type=count, default=8, metavar="N", help="samples at once (%(default)s)")
    add(
        "--text",
        choices=["expression", "prompt"],
        default="expression",
        help="what patches are compared with: the referring expressions (default) or the prompt",
    )
    add(
        "--budgets",
        type=budget,
        nargs="+",
        metavar="TOKENS",
        help="of the kept tokens, each a count or a fraction of an image's, as 0.25 or 1/9 "
        "(64 128 192; of a Qwen-VL 1/9 2/9 1/3)",
    )
    add("--pictures", type=count, default=4, metavar="N", help="images drawn (%(default)s)")
    add(
        "--spacy",
        metavar="PIPELINE",
        help="of spaCy, such as en_core_web_sm, whose noun chunks are the referring words; by "
        "default the data set's expressions are",
    )
    add("--device", default="cpu", help="of PyTorch: cpu (default), cuda, cuda:1 ...")
    add(
        "--output",
        type=Path,
        default=Path("litelvlm-analysis"),
        metavar="FOLDER",
        help="for results.json, tables.md and the pictures (%(default)s)",
    )


def run(chosen: argparse.Namespace) -> None:
    """Do what the arguments say. Raises LiteLVLMError for what cannot be done."""
    if find_spec("matplotlib") is None:
        raise LiteLVLMError(
            "analyze needs matplotlib; install it: pip install 'vllm-litelvlm[analyze]'"
        )
    from rich.console import Console
    from rich.markdown import Markdown

    from vllm_litelvlm.evaluation.analysis.base import Settings
    from vllm_litelvlm.evaluation.analysis.checkpoint import load_encoder
    from vllm_litelvlm.evaluation.analysis.dataset import open_dataset
    from vllm_litelvlm.evaluation.analysis.run import analyze

    dataset = open_dataset(chosen.dataset, chosen.split, chosen.data, chosen.samples)
    encoder = load_encoder(chosen.model, chosen.device)
    settings = Settings(
        samples=chosen.samples,
        seed=chosen.seed,
        batch=chosen.batch,
        wording=chosen.text,
        budgets=tuple(named(chosen.budgets or encoder.budgets).values()),
        pictures=chosen.pictures,
        spacy=chosen.spacy,
    )
    names = list(dict.fromkeys(chosen.analyses))
    analyze(encoder, dataset, names, settings, chosen.output)
    console = Console()
    console.print(Markdown((chosen.output / "tables.md").read_text(encoding="utf-8")))
    console.print(f"Written to {chosen.output}: results.json, tables.md and the pictures")

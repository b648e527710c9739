"""``litelvlm evaluate``, from the command line to the files."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rich.console import Console

from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.evaluation.command.arguments import add_arguments
from vllm_litelvlm.evaluation.command.asking import GUESS, ask_all
from vllm_litelvlm.evaluation.command.opening import Serve, open_backend
from vllm_litelvlm.evaluation.command.plot import plot
from vllm_litelvlm.evaluation.command.record import Record
from vllm_litelvlm.evaluation.command.report import tables, unread, write
from vllm_litelvlm.evaluation.command.settings import EvaluationError, Settings
from vllm_litelvlm.evaluation.command.summary import summarise
from vllm_litelvlm.evaluation.command.tasks import load_task


def main(arguments: Sequence[str], serve: Serve) -> int:
    """Run the command; returns the exit status. Errors of the package are told in a sentence.

    ``serve`` starts the server of ``--model``.
    """
    parser = argparse.ArgumentParser(prog="litelvlm evaluate")
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    try:
        evaluate(chosen, serve, shlex.join(["litelvlm", "evaluate", *arguments]))
    except LiteLVLMError as error:
        print(f"litelvlm: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(
    chosen: argparse.Namespace, serve: Serve, command: str, console: Console | None = None
) -> None:
    """Ask what is not answered yet, then print and write tables and the plot.

    ``chosen`` is what :func:`add_arguments` parsed, ``command`` how it was called. Raises
    OptionsError for settings that cannot be, DataError for a data set's files and EvaluationError
    where the answers cannot be had.
    """
    console = console or Console(stderr=True)
    if chosen.task == "masks":
        from vllm_litelvlm.evaluation.command.masks.run import evaluate_masks

        evaluate_masks(chosen, serve, command, console)
    else:
        _evaluate_answers(chosen, serve, command, console)


def _evaluate_answers(
    chosen: argparse.Namespace, serve: Serve, command: str, console: Console
) -> None:
    needs = ("matplotlib",) if chosen.dataset == "scenes" else ("matplotlib", "pycocotools")
    for needed in needs:
        if find_spec(needed) is None:
            raise EvaluationError(
                f"the evaluation needs {needed}; install it: pip install 'vllm-litelvlm[evaluate]'"
            )
    settings = Settings.of(chosen)
    task = load_task(settings)
    start = Record.resume if chosen.resume else Record.begin
    record = start(settings.output, settings.identity())
    opened = open_backend(settings, serve, console)
    conditions = ask_all(settings, task, opened, record, console)
    rows = summarise(conditions, record.answers, task.reads_box)
    write(settings, rows, command)
    title = f"{settings.dataset} {settings.split}, {settings.answerer}"
    read = {row.kind for row in rows if row.unread is None and row.label != GUESS}
    if read:
        plot([row for row in rows if row.kind in read], settings.output / "plot.png", title)
    print(tables(rows))
    if told := unread(rows, task.box_form):
        console.print(told, style="yellow", markup=False, highlight=False)
    files = f"answers.jsonl, results.json, table.md{', plot.png' if read else ''}"
    console.print(f"Written to {settings.output}: {files}")

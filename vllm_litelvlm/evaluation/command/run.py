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
from vllm_litelvlm.evaluation.command.conditions import Condition
from vllm_litelvlm.evaluation.command.opening import Serve, open_backend
from vllm_litelvlm.evaluation.command.plot import plot
from vllm_litelvlm.evaluation.command.record import Record
from vllm_litelvlm.evaluation.command.report import tables, unread, write
from vllm_litelvlm.evaluation.command.settings import EvaluationError, Settings
from vllm_litelvlm.evaluation.command.summary import summarise
from vllm_litelvlm.evaluation.command.tasks import Task, load_task
from vllm_litelvlm.evaluation.command.tuning.plan import Plan, plan_of
from vllm_litelvlm.evaluation.command.tuning.report import (
    OPTIONS,
    TABLE,
    serve_command,
    verdict,
    write_tuned,
)
from vllm_litelvlm.evaluation.command.tuning.search import tune
from vllm_litelvlm.evaluation.command.tuning.space import Space, space_of


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
    tuning = _tuning(chosen, settings, task)
    start = Record.resume if chosen.resume else Record.begin
    record = start(settings.output, settings.identity())
    opened = open_backend(settings, serve, console)
    if tuning is None:
        conditions = ask_all(settings, task, opened, record, console)
        _report(settings, task, conditions, record, command, console)
        return
    conditions, tuned = tune(settings, *tuning, task, opened, record, console)
    _report(settings, task, conditions, record, command, console)
    write_tuned(settings, tuned, command)
    print(f"\n{verdict(tuned)}\n\n    {serve_command(settings, tuned)}")
    console.print(f"Written to {settings.output}: {TABLE}, {OPTIONS}", highlight=False)


def _tuning(
    chosen: argparse.Namespace, settings: Settings, task: Task
) -> tuple[Space, Plan] | None:
    """What ``--tune`` tries, and by how many questions; None without it."""
    if chosen.tune is None:
        return None
    space = space_of(chosen.tune, settings.methods[-1].positions)
    questions = min(settings.questions, len(task.dataset))
    return space, plan_of(space, len(settings.budgets), questions, chosen.tune_questions)


def _report(
    settings: Settings,
    task: Task,
    conditions: Sequence[Condition],
    record: Record,
    command: str,
    console: Console,
) -> None:
    """Write and print the tables, and draw the plot."""
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

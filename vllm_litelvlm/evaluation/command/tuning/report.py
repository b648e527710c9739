"""What ``--tune`` writes: the table it chose by, and the options for the server."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vllm_litelvlm.evaluation.command.conditions import Method
from vllm_litelvlm.evaluation.command.report import table
from vllm_litelvlm.evaluation.command.settings import Settings
from vllm_litelvlm.evaluation.command.tuning.plan import STRIDES
from vllm_litelvlm.evaluation.command.tuning.search import JUDGES, MOVES, Tuned
from vllm_litelvlm.options import OPTIONS_KEY

TABLE, OPTIONS = "tuned.md", "tuned.yaml"
_NONE = "–"
_ERRORS = {1: "one standard error", 2: "two standard errors"}


def write_tuned(settings: Settings, tuned: Tuned, command: str) -> None:
    """Write the table and the options into the output's folder.

    ``command``: how the tuning was called.
    """
    folder = settings.output
    (folder / TABLE).write_text(_page(settings, tuned, command), encoding="utf-8")
    file = folder / OPTIONS
    arguments = {
        "plugin": OPTIONS_KEY,
        "additional-config": {OPTIONS_KEY: server_options(settings, tuned)},
    }
    told = f"# {_served_by_file(settings, file)}\n"
    file.write_text(told + yaml.safe_dump(arguments, sort_keys=False), encoding="utf-8")


def server_options(settings: Settings, tuned: Tuned) -> dict[str, Any]:
    """What makes a server prune as the chosen method did.

    The budget is among it if there was one; with several, the server's own or the request's holds.
    """
    chosen = tuned.chosen
    options: dict[str, Any] = {"method": chosen.method, **chosen.options}
    if len(tuned.answers.budgets) == 1:
        options["budget"] = tuned.answers.budgets[0]
    if chosen.positions is not None:
        options["positions"] = chosen.positions
    if settings.frame != "crop":
        options["frame"] = settings.frame
    if settings.clip_model is not None:
        options["clip_model"] = settings.clip_model
    return {name: value for name, value in options.items() if value is not None}


def serve_command(settings: Settings, tuned: Tuned) -> str:
    """What serves the model with the chosen options."""
    given = json.dumps({OPTIONS_KEY: server_options(settings, tuned)})
    return f"{_serve(settings)} --plugin litelvlm --additional-config {shlex.quote(given)}"


def _serve(settings: Settings) -> str:
    """As it was served for this; the arguments of a server at --url are not known."""
    given = [] if settings.dtype is None else [f"--dtype={settings.dtype}"]
    return shlex.join(
        ["vllm", "serve", settings.model or "MODEL", *given, *settings.extra_arguments]
    )


def _served_by_file(settings: Settings, file: Path) -> str:
    return f"{_serve(settings)} --config {shlex.quote(str(file))}"


def verdict(tuned: Tuned) -> str:
    """What was chosen, and why, in a sentence or two."""
    default, found, gain = tuned.default.label, tuned.found.label, tuned.gain
    if tuned.found is tuned.default:
        return (
            f"{default} stays: nothing that was tried came out better by more than "
            f"{_ERRORS[MOVES]} of the difference, in as many of the search's "
            f"{tuned.plan.searched} questions as it stayed for."
        )
    if gain is None:
        return f"{default} stays: every image was in the search, which ended at {found}."
    on = f"on {len(tuned.unseen)} questions about images that the search had not seen"
    if tuned.chosen is tuned.found:
        return (
            f"{found} scores better than {default} by {gain.show(3)} {on}, which is more than "
            f"{_ERRORS[JUDGES]}."
        )
    more = "; more --questions tell smaller differences" if gain.value > 0 else ""
    return (
        f"{default} stays: the search ended at {found}, but {on} its score differs by "
        f"{gain.show(3)}, which is not above {_ERRORS[JUDGES]}{more}."
    )


def _page(settings: Settings, tuned: Tuned, command: str) -> str:
    parts = [
        f"**Chosen: {tuned.chosen.label}**",
        verdict(tuned),
        f"    {serve_command(settings, tuned)}",
        f"or, by the file beside this one,\n\n"
        f"    {_served_by_file(settings, settings.output / OPTIONS)}",
    ]
    if len(tuned.answers.budgets) > 1:
        parts.append("There were several budgets, so none is among these options: add your own.")
    if settings.by_expressions:
        parts.append(
            "The expressions named in the questions guided the pruning; requests do the same by "
            "`texts`."
        )
    parts += [f"**Everything tried, on the search's {tuned.plan.searched} questions**"]
    parts.append(_tried(tuned))
    if tuned.unsearched:
        parts.append(
            "Too few questions were left to search again, from where it ended: "
            f"{', '.join(tuned.unsearched)}."
        )
    if tuned.found is not tuned.default:
        parts += ["**Judged**", _judged(tuned)]
    parts += [_notes(settings, tuned), f"    {command}"]
    return "\n\n".join(parts) + "\n"


def _tried(tuned: Tuned) -> str:
    answers = tuned.answers
    several = sorted(answers.budgets) if len(answers.budgets) > 1 else []
    columns = ["options", "questions", "score", f"better than {tuned.default.label} by"]
    lines = []
    for method, places in tuned.tried:
        of_budgets = (answers.score(method, places, [budget]) for budget in several)
        lines.append(
            [
                _marked(tuned, method),
                str(len(places)),
                answers.score(method, places).show(3),
                _gain(tuned, method, places),
                *(score.show(3) for score in of_budgets),
            ]
        )
    return table([*columns, *(f"{budget} tokens" for budget in several)], lines)


def _judged(tuned: Tuned) -> str:
    """The two ends of the search, where it has looked and where it has not."""
    plan = tuned.plan
    rows: Sequence[tuple[str, Sequence[int]]] = (
        ("the search's", plan.round(1)),
        ("on unseen images", tuned.unseen),
        ("all", range(plan.questions)),
    )
    lines = [
        [
            f"{named} ({len(places)})",
            *(tuned.answers.score(one, places).show(3) for one in (tuned.default, tuned.found)),
            _gain(tuned, tuned.found, places),
        ]
        for named, places in rows
        if places
    ]
    columns = ["questions", tuned.default.label, tuned.found.label, "difference"]
    return table(columns, lines)


def _marked(tuned: Tuned, method: Method) -> str:
    return f"**{method.label}**" if method.label == tuned.chosen.label else method.label


def _gain(tuned: Tuned, method: Method, places: Sequence[int]) -> str:
    if method is tuned.default:
        return _NONE
    return tuned.answers.difference(method, tuned.default, places).show(3)


def _notes(settings: Settings, tuned: Tuned) -> str:
    plan, budgets = tuned.plan, sorted(tuned.answers.budgets)
    rounds = ", ".join(str(len(plan.round(stride))) for stride in STRIDES)
    several = "; a score is the mean over these" if len(budgets) > 1 else ""
    return (
        f"Model: {settings.answerer}. Data set: {settings.dataset}, {settings.split}, the first "
        f"{plan.questions} questions, of which the first {plan.searched} were the search's. "
        f"Budget: {' and '.join(map(str, budgets))} tokens{several}. The model was asked "
        f"{tuned.answers.spent} questions of at most {plan.most}, with those of table.md. Option "
        f"by option, values contended in rounds of {rounds} questions, the better half going on, "
        "and the search moved to the best where that was better than where it stood by more than "
        f"{_ERRORS[MOVES]} of the difference. What it ended at had to be better than the defaults "
        f"by more than {_ERRORS[JUDGES]} on the other questions. Differences are on the same "
        "questions; ± is one standard error, over images, and that of a difference is what chance "
        "alone makes of none. The best of many is best by luck too: "
        "believe what unseen images say, and judge the choice on the test split."
    )

"""The results of an evaluation as Markdown tables and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from vllm_litelvlm.evaluation.command.asking import GUESS
from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, BESIDE
from vllm_litelvlm.evaluation.command.settings import Settings
from vllm_litelvlm.evaluation.command.summary import ALL_KINDS, Estimate, Row

_NONE = "–"
_UNREAD = "not read"
_FRAMES = {
    "crop": "of a picture that is no square the model sees the middle",
    "pad": "pictures are padded to a square",
}


def tables(rows: Sequence[Row]) -> str:
    """Scores over budgets as in the paper, then every condition, then every kind of question."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    parts = ["**Score by budget** (Rel. in brackets)", _by_budget(rows)]
    parts += ["**Every condition**", _every_condition(rows)]
    if len(kinds) > 2:  # one kind is all kinds
        parts += ["**Score by kind of question** (Rel. in brackets)", _by_kind(rows, kinds[1:])]
    return "\n\n".join(parts)


def _by_budget(rows: Sequence[Row]) -> str:
    """A line a method, a column a budget, and one for what has no budget: all tokens, a guess."""
    some = [row for row in rows if row.kind == ALL_KINDS]
    budgets = sorted({row.budget for row in some if row.budget is not None})
    found = {(row.label, row.budget): row for row in some}
    lines = []
    for label in dict.fromkeys(row.label for row in some):
        cells = [found.get((label, budget)) for budget in [*budgets, None]]
        lines.append([label, *(_NONE if cell is None else _scored(cell) for cell in cells)])
    return table(["method", *(f"{budget} tokens" for budget in budgets), "no budget"], lines)


def _every_condition(rows: Sequence[Row]) -> str:
    some = [row for row in rows if row.kind == ALL_KINDS]
    others = [one for one in BESIDE if any(one in row.beside for row in some)]
    columns = ["method", "budget", "score", "Rel. (%)", *(f"above {one}" for one in others)]
    columns += ["mean IoU of boxes", "visual tokens", "prompt tokens", "requests/s"]
    return table(columns, [_condition(row, others) for row in some])


def _condition(row: Row, others: Sequence[str]) -> list[str]:
    rate = row.requests_per_second
    guessed = row.label == GUESS
    return [
        row.label,
        _NONE if row.budget is None else str(row.budget),
        _UNREAD if row.unread else row.score.show(3),
        _shown(None if row.unread else row.relative, 1),
        *(_shown(None if row.unread else row.beside.get(one), 3) for one in others),
        _shown(None if row.unread else row.iou, 3),
        _NONE if guessed else f"{row.visual_tokens:.1f}",
        _NONE if guessed else f"{row.prompt_tokens:.1f}",
        _NONE if rate is None else f"{rate:.2f}",
    ]


def _by_kind(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    found = {(row.condition, row.kind): row for row in rows}
    counts = {row.kind: row.questions for row in rows if row.label == ALL_TOKENS}
    lines = [
        [
            row.label,
            _NONE if row.budget is None else str(row.budget),
            *(_scored(found[row.condition, kind]) for kind in kinds),
        ]
        for row in rows
        if row.kind == ALL_KINDS
    ]
    return table(["method", "budget", *(f"{kind} ({counts[kind]})" for kind in kinds)], lines)


def _scored(row: Row) -> str:
    if row.unread is not None:
        return _UNREAD
    share = "" if row.relative is None else f" ({row.relative.value:.1f}%)"
    return f"{row.score.show(3)}{share}"


def _shown(estimate: Estimate | None, digits: int) -> str:
    return _NONE if estimate is None else estimate.show(digits)


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, all columns but the first to the right."""
    rule = "| --- " + "| ---: " * (len(columns) - 1) + "|"
    return "\n".join([_line(columns), rule, *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def unread(rows: Sequence[Row], form: str) -> str | None:
    """What to say where the model writes boxes in another form than ``form``."""
    example = next((row.unread for row in rows if row.unread is not None), None)
    if example is None:
        return None
    return (
        f"Boxes are not read: the model writes most of them as {example!r}, and this data set's "
        f"are read as {form}. Ask in words that this model was trained with, or evaluate another."
    )


def notes(settings: Settings, rows: Sequence[Row]) -> str:
    """What the tables must not be read without."""
    guide = "the expressions named in the question" if settings.by_expressions else "the prompt"
    if settings.texts > 1:
        guide = f"up to {settings.texts} expressions about the image"
    return (
        f"Model: {settings.answerer} ({settings.backend}). Data set: {settings.dataset}, "
        f"{settings.split}, the first {rows[0].questions} questions, the same for every method; "
        f"{_FRAMES[settings.frame]}; "
        f"{guide} guides the pruning. Greedy answers. A score is the share of right answers; a box "
        "is right with an IoU above 0.5, and what is no box has an IoU of 0. Over several kinds of "
        "question, the score is the mean of the kinds' scores. Rel. = 100 × score ÷ all-token "
        f"score ({ALL_TOKENS}). ± is one standard error, over images (samples about one image "
        "count together); that of Rel. is from the differences to all tokens in the same samples. "
        "Above another method: the difference of the scores at the same budget and positions, its "
        "error from the same samples too. "
        "A guess answers without the model. Every image is pruned for its own text. Requests/s "
        f"with {settings.concurrent} at once, and caches as the server has them: methods ask in "
        "turn about the same images, so these compare less well than the benchmark's."
    )


def write(settings: Settings, rows: Sequence[Row], command: str) -> None:
    """Write ``results.json`` and ``table.md``."""
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
    }
    folder = settings.output
    text = json.dumps(result, indent=1, default=str, ensure_ascii=False)
    (folder / "results.json").write_text(f"{text}\n", encoding="utf-8")
    told = f"{tables(rows)}\n\n{notes(settings, rows)}\n\n    {command}\n"
    (folder / "table.md").write_text(told, encoding="utf-8")

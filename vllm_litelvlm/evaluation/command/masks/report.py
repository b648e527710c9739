"""The results of masks as Markdown tables and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.masks.submitting import Packed
from vllm_litelvlm.evaluation.command.masks.summary import (
    ALL_ANNOTATORS,
    AS_PUBLISHED,
    Costs,
    ImageRow,
    VideoRow,
)
from vllm_litelvlm.evaluation.masks.metrics import THRESHOLDS

_NONE = "–"
_PROTOCOLS = {
    "authors": "at most three expressions an image, as the paper's authors ask",
    "all": "all expressions",
}
_COSTS = ["visual tokens", "prompt tokens", "masks/s"]


def image_tables(rows: Sequence[ImageRow]) -> str:
    """Each protocol's cIoU by budget, then every figure of every condition."""
    parts = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        some = [row for row in rows if row.protocol == protocol]
        told = f"{_PROTOCOLS[protocol]} ({some[0].figures.expressions})"
        cells = {(row.label, row.budget): _scored(row.figures.ciou, row.relative) for row in some}
        parts += [f"**cIoU by budget** (share of all tokens' in brackets): {told}"]
        parts += [_by_budget(cells), f"**Every condition**: {told}"]
        heads = ["method", "budget", "cIoU", "Rel. (%)", "gIoU"]
        heads += [*(f"P@{threshold}" for threshold in THRESHOLDS), *_COSTS]
        parts.append(table(heads, [_image_cells(row) for row in some]))
    return "\n\n".join(parts)


def _image_cells(row: ImageRow) -> list[str]:
    figures = row.figures
    return [
        row.label,
        _NONE if row.budget is None else str(row.budget),
        figures.ciou.show(),
        _NONE if row.relative is None else row.relative.show(1),
        figures.giou.show(),
        *(figures.precision[threshold].show() for threshold in THRESHOLDS),
        *_cost_cells(row.costs),
    ]


def video_tables(rows: Sequence[VideoRow]) -> str:
    """For each way of judging J&F by budget, every figure, and every annotator's J&F."""
    parts = []
    for way in dict.fromkeys(row.way for row in rows):
        ours = [row for row in rows if row.way == way]
        some = [row for row in ours if row.annotator == ALL_ANNOTATORS]
        told = f"judged {way} ({some[0].figures.expressions})"
        cells = {
            (row.label, row.budget): _scored(row.figures.j_and_f, row.relative) for row in some
        }
        parts += [f"**J&F by budget** (share of all tokens' in brackets): {told}"]
        parts += [_by_budget(cells), f"**Every condition**: {told}"]
        heads = ["method", "budget", "J&F", "Rel. (%)", "J", "F", *_COSTS]
        parts.append(table(heads, [_video_cells(row) for row in some]))
        annotators = list(dict.fromkeys(row.annotator for row in ours))[1:]
        if annotators:
            found = {(row.condition, row.annotator): row.figures.j_and_f.show() for row in ours}
            lines = [
                [row.condition, *(found[row.condition, one] for one in annotators)] for row in some
            ]
            parts += [f"**J&F by annotator**: {told}", table(["condition", *annotators], lines)]
    return "\n\n".join(parts)


def _video_cells(row: VideoRow) -> list[str]:
    figures = row.figures
    return [
        row.label,
        _NONE if row.budget is None else str(row.budget),
        figures.j_and_f.show(),
        _NONE if row.relative is None else row.relative.show(1),
        figures.j.show(),
        figures.f.show(),
        *_cost_cells(row.costs),
    ]


def submission_table(packed: Sequence[Packed]) -> str:
    """Where each condition's archive lies."""
    lines = [[one.condition, str(one.archive), str(one.masks)] for one in packed]
    return table(["condition", "archive", "masks"], lines)


def _cost_cells(costs: Costs) -> list[str]:
    return [
        f"{costs.visual_tokens:.1f}",
        f"{costs.prompt_tokens:.1f}",
        f"{costs.masks_per_second:.2f}",
    ]


def _by_budget(cells: dict[tuple[str, int | None], str]) -> str:
    """A line a method, a column a budget, and one for all tokens."""
    budgets = sorted({budget for _, budget in cells if budget is not None})
    lines = [
        [label, *(cells.get((label, budget), _NONE) for budget in [*budgets, None])]
        for label in dict.fromkeys(label for label, _ in cells)
    ]
    return table(["method", *(f"{budget} tokens" for budget in budgets), "all tokens"], lines)


def _scored(figure: Estimate, relative: Estimate | None) -> str:
    share = "" if relative is None else f" ({relative.mean:.1f}%)"
    return f"{figure.show()}{share}"


def image_notes(settings: MaskSettings) -> str:
    """What the tables must not be read without."""
    return (
        f"{_asked(settings)} Asked about: the first {settings.questions} expressions, or as many "
        f"as there are; {_together(settings)}. Of an image with more than three, the authors' "
        "protocol draws three. cIoU: the sum of intersections over the sum of unions. gIoU: the "
        "mean IoU of expressions; P@t: the share of them whose IoU is t or more. Rel. = 100 × cIoU "
        "÷ cIoU of all tokens. ± is one standard error, by the jackknife over images; that of Rel. "
        f"leaves images out of both at a time. {_rates(settings)}"
    )


def video_notes(settings: MaskSettings, rows: Sequence[VideoRow]) -> str:
    """The same of videos."""
    published = any(row.way == AS_PUBLISHED for row in rows)
    return (
        f"{_asked(settings)} Asked about: {rows[0].figures.j.images} videos, in the words of "
        f"{', '.join(settings.annotators)}. Each frame is asked about by itself, and "
        f"{_together(settings)}. J: region similarity (IoU). F: "
        "accuracy of the boundary. J&F: their mean. "
        + (
            "As published: the masks of a frame become one picture of object numbers, matched with "
            "the right objects as davis2017-evaluation's unsupervised task does, a mean over "
            "objects. "
            if published
            else "The published evaluation does not apply: an annotator has several expressions "
            "about one object. "
        )
        + "By expression: each expression's masks against the object that it means. Rel. = 100 × "
        "J&F ÷ J&F of all tokens. ± is one standard error, by the jackknife over videos; that of "
        f"Rel. leaves videos out of both at a time. {_rates(settings)}"
    )


def _asked(settings: MaskSettings) -> str:
    case = "in lower case" if settings.lower_case else "in their own capitals"
    frame = {
        "crop": "of a picture that is no square the language model sees the middle",
        "pad": "pictures are padded to a square for the language model",
    }[settings.frame]
    return (
        f"Model: {settings.answerer} ({settings.backend}). Data set: {settings.dataset}, "
        f"{settings.split}; {frame}, SAM all of it. Expressions are asked {case}, by the first of "
        "GLaMM's templates, where its evaluation draws from sixteen; they guide the pruning."
    )


def _together(settings: MaskSettings) -> str:
    if settings.together == 1:
        return "each expression has a conversation of its own"
    return f"up to {settings.together} share a conversation and guide one pruning together"


def _rates(settings: MaskSettings) -> str:
    return (
        f"Masks/s with up to {settings.concurrent} at once, and caches as the server has them: "
        "methods ask in turn about the same pictures, whose SAM features the first one pays for."
    )


def write(
    settings: MaskSettings,
    command: str,
    tables: str,
    notes: str,
    rows: Sequence[ImageRow] | Sequence[VideoRow] | Sequence[Packed],
) -> None:
    """Write ``results.json`` and ``table.md``."""
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(result, indent=1, default=str, ensure_ascii=False)
    (settings.output / "results.json").write_text(f"{text}\n", encoding="utf-8")
    told = "\n\n".join(filter(None, [tables, notes, f"    {command}"]))
    (settings.output / "table.md").write_text(f"{told}\n", encoding="utf-8")

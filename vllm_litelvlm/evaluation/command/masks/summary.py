"""Figures of masks, and how much of the all-token ones each condition keeps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, Condition
from vllm_litelvlm.evaluation.command.masks.record import ImageMasked, VideoMasked
from vllm_litelvlm.evaluation.masks.judging import Similarity, VideoFigures, VideoScores
from vllm_litelvlm.evaluation.masks.metrics import MaskFigures, MaskScores, Overlap

#: All annotators of Ref-DAVIS17 together.
ALL_ANNOTATORS = "all"
#: How expressions about videos are judged: each by itself, and object by object.
BY_EXPRESSION, AS_PUBLISHED = "by expression", "as published"


@dataclass(frozen=True)
class Costs:
    """Means over conversations and pictures, and masks a second of all that was asked."""

    prompt_tokens: float
    visual_tokens: float
    masks_per_second: float


@dataclass(frozen=True)
class ImageRow:
    """One condition under one protocol.

    ``relative``: its cIoU in percent of the all-token one, from differences in the same images;
    None where that is 0.
    """

    protocol: str
    condition: str
    label: str
    budget: int | None
    figures: MaskFigures
    relative: Estimate | None
    costs: Costs


@dataclass(frozen=True)
class VideoRow:
    """One condition, for one annotator's expressions or all.

    ``figures`` by expression, and ``published`` by the published evaluation, None where it does
    not apply; each with its J&F in percent of the all-token one.
    """

    annotator: str
    way: str
    condition: str
    label: str
    budget: int | None
    figures: VideoFigures
    relative: Estimate | None
    costs: Costs


def summarise_images(
    conditions: Sequence[Condition], lines: Iterable[ImageMasked], protocols: Sequence[str]
) -> list[ImageRow]:
    """A row a protocol and condition, in their order."""
    by_condition: dict[str, list[ImageMasked]] = {}
    for line in lines:
        by_condition.setdefault(line.condition, []).append(line)
    rates = {
        # Of all protocols: what one asks is among the others' on its way.
        name: sum(len(line.overlaps) for line in some) / sum(line.took for line in some)
        for name, some in by_condition.items()
    }
    rows = []
    for protocol in protocols:
        asked = {
            name: [line for line in some if protocol in line.protocols]
            for name, some in by_condition.items()
        }
        whole = _scores(asked[ALL_TOKENS])
        compared = whole.figures().ciou.mean > 0
        prompts = _prompt_tokens(asked[ALL_TOKENS])
        for one in conditions:
            some = asked[one.name]
            scores = _scores(some)
            rows.append(
                ImageRow(
                    protocol=protocol,
                    condition=one.name,
                    label=one.method.label,
                    budget=one.budget,
                    figures=scores.figures(),
                    relative=_percent(scores.relative(whole)) if compared else None,
                    costs=_costs(some, prompts, rates[one.name]),
                )
            )
    return rows


def _scores(lines: Iterable[ImageMasked]) -> MaskScores:
    scores = MaskScores()
    for line in lines:
        for intersection, union in line.overlaps:
            scores.add(line.image, Overlap(intersection, union))
    return scores


def summarise_videos(
    conditions: Sequence[Condition], lines: Iterable[VideoMasked], annotators: Sequence[str]
) -> list[VideoRow]:
    """A row a way, annotator (all first) and condition; a way that does not apply has none."""
    found = list(lines)
    rows = []
    for way in (AS_PUBLISHED, BY_EXPRESSION):
        if way == AS_PUBLISHED and any(line.published is None for line in found):
            continue
        for annotator in [ALL_ANNOTATORS, *(annotators if len(annotators) > 1 else ())]:
            some = [line for line in found if annotator in (ALL_ANNOTATORS, line.annotator)]
            rows += _video_rows(conditions, some, annotator, way)
    return rows


def _video_rows(
    conditions: Sequence[Condition], lines: Sequence[VideoMasked], annotator: str, way: str
) -> list[VideoRow]:
    by_condition: Mapping[str, list[VideoMasked]] = {
        one.name: [line for line in lines if line.condition == one.name] for one in conditions
    }
    whole = _video_scores(by_condition[ALL_TOKENS], way)
    compared = whole.figures().j_and_f.mean > 0
    prompts = _prompt_tokens(by_condition[ALL_TOKENS])
    rows = []
    for one in conditions:
        some = by_condition[one.name]
        scores = _video_scores(some, way)
        masks = sum(len(line.expressions) * line.frames for line in some)
        rows.append(
            VideoRow(
                annotator=annotator,
                way=way,
                condition=one.name,
                label=one.method.label,
                budget=one.budget,
                figures=scores.figures(),
                relative=_percent(scores.relative(whole)) if compared else None,
                costs=_costs(some, prompts, masks / sum(line.took for line in some)),
            )
        )
    return rows


def _video_scores(lines: Iterable[VideoMasked], way: str) -> VideoScores:
    scores = VideoScores()
    for line in lines:
        found = line.published if way == AS_PUBLISHED else line.expressions
        scores.add(line.video, [Similarity(j, f) for j, f in found or ()])
    return scores


def _prompt_tokens(lines: Sequence[ImageMasked] | Sequence[VideoMasked]) -> float:
    return float(np.mean([line.prompt_tokens for line in lines]))


def _costs(
    lines: Sequence[ImageMasked] | Sequence[VideoMasked], whole: float, rate: float
) -> Costs:
    """``whole``: the prompt tokens of the same where nothing is pruned."""
    prompts = _prompt_tokens(lines)
    return Costs(prompts, lines[0].all_tokens - (whole - prompts), rate)


def _percent(ratio: Estimate) -> Estimate:
    error = ratio.standard_error
    return Estimate(100 * ratio.mean, None if error is None else 100 * error, ratio.images)

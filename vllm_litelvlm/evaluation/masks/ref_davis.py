"""How masks of a DAVIS sequence are judged, expression by expression and as published."""

from collections.abc import Iterable

import numpy as np

from vllm_litelvlm.evaluation.masks.boundary import Mask
from vllm_litelvlm.evaluation.masks.davis import DavisVideo
from vllm_litelvlm.evaluation.masks.judging import Similarity, VideoJudge, exclusive
from vllm_litelvlm.evaluation.masks.metrics import check_masks


def judge_expressions(video: DavisVideo, predicted: Iterable[Mask]) -> tuple[Similarity, ...]:
    """What each expression's masks are worth against the object that it means, in order.

    An object may have several expressions, and masks may overlap.

    Args:
        video: of which the judged frames count, by its task.
        predicted: for each of its frames, judged or not, bool [expressions, height, width].
    """
    targets = np.array([one.target for one in video.expressions]) - 1
    judge = VideoJudge()
    for place, (masks, truth) in enumerate(zip(predicted, video.truth(), strict=True)):
        if place in video.judged:
            judge.add(masks, truth.masks[targets], truth.void)
    return judge.similarities()


def judge_as_published(video: DavisVideo, predicted: Iterable[Mask]) -> tuple[Similarity, ...]:
    """What an annotator's masks are worth by the published evaluation, object by object.

    VideoGLaMM's (and ReferFormer's) code for Ref-DAVIS17: the masks of a frame become one picture
    of object numbers, in which a pixel of several is the first object's; it is judged by
    davis2017-evaluation. In its task "unsupervised", which they use, predictions are matched with
    objects anew (:class:`~vllm_litelvlm.evaluation.masks.judging.VideoJudge`). An object without an
    expression has empty masks.

    Args:
        video: with at most one expression an object.
        predicted: as of :func:`judge_expressions`.

    Raises ValueError for two expressions about an object, and for other types or sizes.
    """
    targets = np.array([one.target for one in video.expressions]) - 1
    if len(set(targets.tolist())) < len(targets):
        raise ValueError(f"{video.name} has several expressions about one object.")
    judge = VideoJudge(matched=video.task == "unsupervised")
    for place, (masks, truth) in enumerate(zip(predicted, video.truth(), strict=True)):
        if place in video.judged:
            check_masks(masks, truth.masks[targets])
            by_object = np.zeros_like(truth.masks)
            by_object[targets] = masks
            judge.add(exclusive(by_object), truth.masks, truth.void)
    return judge.similarities()

"""HoloV against a slow re-derivation."""

import math
import random
from statistics import fmean

import pytest
import torch

from tests.pruning.helpers import random_signals
from tests.pruning.rederivation import Calls, clear_case, cosines, random_shape
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


def crops_of(patches: int, count: int) -> list[list[int]]:
    """The last one may be shorter."""
    length = math.ceil(patches / count)
    return [list(range(start, min(start + length, patches))) for start in range(0, patches, length)]


def crop_score(attention: list[float], tokens: list[list[float]], weight: float) -> float:
    """Of a crop, with zeros for what it lacks."""
    if len(attention) == 1:
        return attention[0]
    variances = []
    for number, row in enumerate(cosines(tokens, tokens)):
        row[number] = 0.0
        mean = fmean(row)
        variances.append(sum((one - mean) ** 2 for one in row) / (len(row) - 1))
    factor = fmean(attention) / (fmean(variances) + 1e-6)
    return fmean(a + weight * factor * v for a, v in zip(attention, variances, strict=True))


def derive(
    signals: Signals, image: int, budget: int, options: tuple[int, float], calls: Calls
) -> list[int]:
    """Kept patches."""
    attention = signals[Signal.CLS_ATTENTION][image].double().tolist()
    tokens = signals.patch_tokens[image].double().tolist()
    crops = crops_of(signals.patches, options[0])
    scores = [
        crop_score(
            [attention[p] for p in crop] + [0.0] * (len(crops[0]) - len(crop)),
            [tokens[p] for p in crop] + [[0.0] * len(tokens[0])] * (len(crops[0]) - len(crop)),
            options[1],
        )
        for crop in crops
    ]
    exact = [score / sum(scores) * budget for score in scores]
    for one in exact:  # neither side of a whole number by rounding
        calls.note(min(one % 1, 1 - one % 1), 0)
    quotas = [min(math.floor(one), len(crop)) for one, crop in zip(exact, crops, strict=True)]
    best = sorted(range(len(crops)), key=lambda crop: -scores[crop])
    if len(crops) > 1:
        calls.order([scores[crop] / max(scores) for crop in best])
    floors = list(map(math.floor, exact))
    for crop in best:
        if sum(quotas) < budget and len(crops[crop]) > floors[crop]:
            quotas[crop] += 1
    while sum(quotas) < budget:
        crop = next(one for one in best if quotas[one] < len(crops[one]))
        quotas[crop] += 1
    kept = []
    for crop, quota in zip(crops, quotas, strict=True):
        kept += sorted(crop, key=lambda patch: -attention[patch])[:quota]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(60))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed, patches=[5, 16, 36, 49, 100, 144])
    options = random.Random(seed).choice([(16, 0.09), (16, 0.09), (7, 1.0), (3, 0.0), (50, 5.0)])
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, options, case[2])
    )
    pruner = build_pruner("holov", {"crops": options[0], "variance": options[1]})
    selection = pruner.select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    assert not selection.guided.any()


def test_one_crop_is_kept_by_attention() -> None:
    signals = random_signals([0, 0])
    kept = build_pruner("holov", {"crops": 1}).select(signals, 64).indices
    assert torch.equal(kept, build_pruner("cls-attention", {}).select(signals, 64).indices)


def test_every_crop_of_an_even_image_has_its_share() -> None:
    signals = random_signals([0], patches=64)
    signals[Signal.CLS_ATTENTION].fill_(1 / 65)
    signals[Signal.FEATURES][:] = 1.0
    kept = build_pruner("holov", {}).select(signals, 32).indices[0]
    assert (kept // 4).bincount().tolist() == [2] * 16

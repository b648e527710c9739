"""What answers are worth that do not understand the question."""

from collections.abc import Iterable

import numpy as np

from vllm_litelvlm.evaluation.scenes.answers import is_right, write_box
from vllm_litelvlm.evaluation.scenes.dataset import SceneSample
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES
from vllm_litelvlm.evaluation.scenes.phrases import pick
from vllm_litelvlm.evaluation.scenes.wording import ANSWERS

#: The commonest number that is asked for.
_COUNT = "1"


def random_object_guess(sample: SceneSample, random: np.random.Generator) -> str:
    """The answer for an object of the image taken at random, whatever the question asks about.

    Where no object gives one: "yes" or "no" at random, and the commonest number.
    """
    guessed = pick(random, sample.scene.objects)
    if sample.kind in ATTRIBUTES:
        return guessed.attribute(sample.kind)
    if sample.kind == "box":
        return write_box(guessed.box, *sample.image.size)
    return _COUNT if sample.kind == "count" else pick(random, ANSWERS[sample.kind])


def guess_accuracy(samples: Iterable[SceneSample], random: np.random.Generator) -> dict[str, float]:
    """The share of right :func:`random_object_guess` answers, by kind of question."""
    results: dict[str, list[bool]] = {}
    for sample in samples:
        right = is_right(sample, random_object_guess(sample, random))
        results.setdefault(sample.kind, []).append(right)
    return {kind: sum(right) / len(right) for kind, right in sorted(results.items())}

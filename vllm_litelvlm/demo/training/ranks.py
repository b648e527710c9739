"""Where a referent's patches stand among all patches, by each signal that may guide pruning."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from vllm_litelvlm.evaluation.scenes.expressions import Expression, refer
from vllm_litelvlm.evaluation.scenes.scene import BACKGROUND, Scene
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.vision.clip import ClipScorer

_SIGNALS = {
    "similarity": Signal.SIMILARITY,
    "value": Signal.VALUE,
    "context": Signal.CONTEXT,
}


@dataclass(frozen=True)
class Referred:
    """A scene and an expression for one of its objects."""

    scene: Scene
    expression: Expression


def refer_to_each(scenes: Sequence[Scene], seed: int = 0) -> list[Referred]:
    """One expression in the validation wordings about an object at random of every scene."""
    random = np.random.Generator(np.random.PCG64(seed))
    found = []
    for scene in scenes:
        target = scene.objects[int(random.integers(len(scene.objects)))]
        expression = refer(target, scene.objects, "val", random)
        if expression is not None:
            found.append(Referred(scene, expression))
    return found


def scorer_of(config: CLIPVisionConfig, tensors: dict[str, Tensor]) -> ClipScorer:
    """The plugin's scorer with the weights of a CLIP checkpoint."""
    scorer = ClipScorer(config, tensors["visual_projection.weight"].shape[0])
    parameters = dict(scorer.named_parameters())
    with torch.no_grad():
        for own, name in scorer.clip_names().items():
            parameters[own].copy_(tensors[name])
    return scorer.to(tensors["visual_projection.weight"].device)


@torch.no_grad()
def rank_figures(
    scorer: ClipScorer, hidden: Tensor, texts: Tensor, referred: Sequence[Referred], patch: int
) -> dict[str, float]:
    """The mean normalised rank (0 lowest score, 1 highest) of the referents' patches.

    Beside it, under ``.others``, that of other objects' patches.

    Args:
        scorer: see :func:`scorer_of`.
        hidden: hidden state -2, [images, 1 + patches, width].
        texts: the expressions' embeddings, float32 [images, projection].
        referred: of each image, what it shows and which object is meant.
        patch: its side in pixels.
    """
    needs = frozenset(_SIGNALS.values())
    signals = scorer.image_signals(hidden, None, needs)
    signals |= scorer.text_signals(hidden, [text[None] for text in texts], needs)
    figures: dict[str, float] = {}
    for name, signal in _SIGNALS.items():
        scores = signals[signal]
        scores = scores.squeeze(1) if scores.dim() == 3 else scores
        order = scores.argsort(dim=1).argsort(dim=1).float() / (scores.shape[1] - 1)
        own, others = [], []
        for row, one in zip(order.cpu().numpy(), referred, strict=True):
            owners = one.scene.patch_labels(patch).reshape(-1)
            is_own = owners == one.expression.target
            own.extend(row[is_own])
            others.extend(row[~is_own & (owners != BACKGROUND)])
        figures[f"rank.{name}"] = float(np.mean(own))
        if others:
            figures[f"rank.{name}.others"] = float(np.mean(others))
    return figures

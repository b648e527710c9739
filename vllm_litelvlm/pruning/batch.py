"""From a mixed batch to uniform ones: images that ask for the same are pruned together."""

from collections import defaultdict
from collections.abc import Sequence

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals


def needed_signals(pruners: Sequence[Pruner]) -> frozenset[Signal]:
    """The signals that a batch's methods read, together."""
    return frozenset().union(*(pruner.needs for pruner in pruners))


def prune(signals: Signals, pruners: Sequence[Pruner], budgets: Sequence[int]) -> list[Selection]:
    """One selection an image, without the leading dimension.

    Args:
        signals: of the whole batch; at least :func:`needed_signals` of ``pruners``.
        pruners: one an image.
        budgets: one an image, each from 1 to ``signals.patches``.
    """
    groups: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for image, (pruner, budget) in enumerate(zip(pruners, budgets, strict=True)):
        groups[pruner.name, pruner.model_dump_json(), budget].append(image)
    chosen: dict[int, Selection] = {}
    for images in groups.values():
        pruner, budget = pruners[images[0]], budgets[images[0]]
        selection = pruner.select(signals.rows(images, pruner.needs), budget)
        promised = (len(images), pruner.output_count(budget))
        if selection.tokens.shape[:2] != promised:
            raise RuntimeError(
                f"pruning method {pruner.name!r} returned tokens of shape "
                f"{list(selection.tokens.shape)}; it promised {list(promised)} (images, tokens)"
            )
        chosen.update(zip(images, selection.unbind(), strict=True))
    return [chosen[image] for image in range(len(pruners))]

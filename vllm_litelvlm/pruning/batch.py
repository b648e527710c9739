"""From a mixed batch to uniform ones: images that ask for the same are pruned together."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import (
    TEXT_SIGNALS,
    Selection,
    Signal,
    Signals,
    keep,
)
from vllm_litelvlm.pruning.order import Layer, Order
from vllm_litelvlm.pruning.ranking import highest
from vllm_litelvlm.pruning.window import confined, through


def needed_signals(orders: Iterable[Order]) -> frozenset[Signal]:
    """The signals that a batch's choices read, together."""
    return frozenset().union(*(order.needs for order in orders))


def choose_bases(signals: Signals, orders: Sequence[Order]) -> Tensor:
    """The base of every image, of which each order asks for one layer.

    Returns:
        Membership, bool [images, patches].
    """
    groups = _groups(orders, lambda order: order.base_key)
    bases: dict[int, Tensor] = {}
    for images in groups:
        order = orders[images[0]]
        chosen = _choose_base(signals.rows(images, order.pruner.needs - TEXT_SIGNALS), order)
        if len(groups) == 1:
            return chosen
        bases.update(zip(images, chosen.unbind(), strict=True))
    return torch.stack([bases[image] for image in range(len(orders))])


def prune(
    signals: Signals, orders: Sequence[Order], bases: Sequence[Tensor | None]
) -> list[Selection]:
    """One selection an image, without the leading dimension.

    Args:
        signals: of the whole batch; at least :func:`needed_signals` of ``orders``.
        orders: one an image, each with a budget from 1 to ``signals.patches``.
        bases: of those images of which one layer is asked for, bool [patches].
    """
    chosen: dict[int, Selection] = {}
    for images in _groups(orders, lambda order: (order.base_key, order.layer, order.budget)):
        order = orders[images[0]]
        some = signals.rows(images, order.needs | {Signal.FEATURES})
        selection = _select(some, order, [bases[image] for image in images])
        promised = (len(images), order.count)
        if selection.tokens.shape[:2] != promised:
            raise RuntimeError(
                f"pruning method {order.pruner.name!r} returned tokens of shape "
                f"{list(selection.tokens.shape)}; it promised {list(promised)} (images, tokens)"
            )
        chosen.update(zip(images, selection.unbind(), strict=True))
    return [chosen[image] for image in range(len(orders))]


def _select(signals: Signals, order: Order, bases: Sequence[Tensor | None]) -> Selection:
    """One layer of images that ask for the same."""
    below = [one for one in bases if one is not None]

    def choose(signals: Signals, base: Tensor | None) -> Selection:
        if base is None:
            return order.pruner.select(signals, order.budget)
        if order.layer is Layer.FOCUS:
            return order.pruner.choose_focus(signals, base, order.budget)
        return keep(signals, highest(base.to(torch.uint8), order.budget))  # equals in raster order

    return through(order.window, signals, torch.stack(below) if below else None, choose)


def _choose_base(signals: Signals, order: Order) -> Tensor:
    """Membership in the base of images that ask for the same, bool [images, patches]."""
    if order.window is None:
        return order.pruner.choose_base(signals, order.base)
    inside, places = confined(signals, order.window)
    chosen = order.pruner.choose_base(inside, order.base)
    nothing = chosen.new_zeros(signals.images, signals.patches)
    return nothing.index_copy_(1, places[: order.window.patches], chosen)


def _groups(orders: Sequence[Order], key: Callable[[Order], Hashable]) -> list[list[int]]:
    """Numbers of equal orders, together."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, order in enumerate(orders):
        groups[key(order)].append(number)
    return list(groups.values())

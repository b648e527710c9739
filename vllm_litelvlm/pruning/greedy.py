"""The loop of all methods that choose one token a step; on a GPU each has it as a kernel."""

from collections.abc import Callable

import torch
from torch import Tensor


def choose_one_by_one(
    keys_after: Callable[[Tensor | None], Tensor], count: int, *, excludes: bool = False
) -> Tensor:
    """Choose again and again the token with the highest key. Ties go to the lower index.

    Args:
        keys_after: gives the keys of the next step, float32 [images, tokens], after the newest
            choice, int64 [images], or None before the first one; asked once a step, in order.
        count: how many to choose.
        excludes: whether the keys of what was chosen are below all others anyway.

    Returns:
        Tokens in the order of their choice, int64 [images, count].
    """
    newest: Tensor | None = None
    taken: Tensor | None = None
    chosen = []
    for _ in range(count):
        keys = keys_after(newest)
        if taken is not None:
            keys = keys.masked_fill(taken, -torch.inf)
        newest = keys.argmax(dim=-1)
        chosen.append(newest)
        if not excludes:
            if taken is None:
                taken = torch.zeros_like(keys, dtype=torch.bool)
            taken.scatter_(1, newest[:, None], True)
    return torch.stack(chosen, dim=1)

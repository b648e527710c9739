"""FastV and SparseVLM in loops and sorted lists, float64, written from their descriptions alone."""

import math

import torch
from torch import Tensor


def best_first(scores: list[float], among: list[int]) -> list[int]:
    return sorted(among, key=lambda place: (-scores[place], place))


def fastv(attention: Tensor, start: int, visual: int, budget: int) -> list[int]:
    """Visual tokens to keep by a layer's attention, [heads, tokens, tokens]."""
    heads, tokens, _ = attention.shape
    scores = [
        math.fsum(float(attention[head, tokens - 1, start + place]) for head in range(heads))
        for place in range(visual)
    ]
    return sorted(best_first(scores, list(range(visual)))[:budget])


def raters(embedded: Tensor, start: int, visual: int) -> list[int]:
    """Text tokens behind the image that rate, counted from the first of them."""
    image = embedded[start : start + visual].double().tolist()
    text = embedded[start + visual :].double().tolist()
    shares = [0.0] * len(text)
    for patch in image:
        logits = [math.fsum(a * b for a, b in zip(patch, word, strict=True)) for word in text]
        highest = max(logits)
        powers = [math.exp(logit - highest) for logit in logits]
        for word, power in enumerate(powers):
            shares[word] += power / math.fsum(powers) / len(image)
    mean = math.fsum(shares) / len(shares)
    return [word for word, share in enumerate(shares) if share > mean]


def sparsevlm(
    attention: Tensor, hidden: Tensor, start: int, visual: int, rating: list[int], count: int
) -> tuple[list[int], Tensor]:
    """Visual tokens to keep, and the means of clusters of recycled ones, float64.

    ``attention`` [heads, tokens, tokens] and ``hidden`` [tokens, width] of the layer; ``rating``
    as :func:`raters` gives it.
    """
    rows = [start + visual + word for word in rating]
    attention = attention.double()
    scores = []
    for place in range(visual):
        seen_by = [attention[head, row, start + place] for head in range(len(attention))
                   for row in rows]  # fmt: skip
        scores.append(float(sum(seen_by)) / len(seen_by))
    everyone = list(range(visual))
    kept = set(best_first(scores, everyone)[: min(count, visual - 1)])
    pruned = [place for place in everyone if place not in kept]
    recycled = best_first(scores, pruned)[: int(len(pruned) * 0.3) + 1]
    return sorted(kept), cluster_means(hidden[[start + place for place in recycled]].double())


def cluster_means(tokens: Tensor) -> Tensor:
    """Density-peak clustering of float64 [tokens, width]; one mean a cluster, best centre first."""
    total, width = tokens.shape
    clusters = total // 10 + 1
    everyone = list(range(total))
    away = [
        [float((tokens[one] - tokens[two]).norm()) / math.sqrt(width) for two in everyone]
        for one in everyone
    ]
    densities = []
    for one in everyone:
        nearest = sorted(away[one])[:clusters]
        densities.append(math.exp(-sum(d * d for d in nearest) / clusters))
    longest = max(max(row) for row in away)
    scores = []
    for one in everyone:
        to_denser = [away[one][two] for two in everyone if densities[two] > densities[one]]
        scores.append(min(to_denser, default=longest) * densities[one])
    centres = best_first(scores, everyone)[:clusters]
    members: list[list[int]] = [[centre] for centre in centres]
    for one in everyone:
        if one not in centres:
            nearest_centre = min(range(clusters), key=lambda c: away[centres[c]][one])
            members[nearest_centre].append(one)
    return torch.stack([tokens[group].mean(dim=0) for group in members])

"""SparseVLM: visual tokens that chosen words attend to, layer by layer, some of the rest merged."""

from typing import ClassVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.pruning.decoder import DecoderPruner, DecoderSelection, DecoderState
from vllm_litelvlm.pruning.ranking import highest, others, raster

#: Budget to how many visual tokens stay after each of the three layers, as published.
PUBLISHED_SCHEDULES = {
    192: (300, 200, 110),
    128: (303, 110, 36),
    96: (238, 48, 26),
    64: (66, 30, 17),
}
#: Of the tokens that a stage drops, the part that is recycled, and how many make one cluster.
_RECYCLED, _TOKENS_A_CLUSTER = 0.3, 10

_LAYERS = "a non-empty rising list of layer numbers from 0, such as [2, 6, 15]"
_SCHEDULE = (
    "a falling list of token counts from 1, one for each of 'layers', such as [300, 200, 110], "
    "or null for the published one of the budget"
)


class SparseVLM(DecoderPruner):
    """SparseVLM (Zhang et al., ICML 2025; github.com/Gumpest/SparseVLMs, version 1.0).

    *Raters* are chosen once, from the embedded prompt: each visual token spreads a softmax of its
    dot products over the text tokens behind the image, and those with more than the mean share
    are the raters.

    After each of ``layers``, visual tokens are scored by that layer's attention from the raters
    (probabilities, mean over heads, then raters), and the ``schedule``'s number of them stays, but
    one less than there are at the most. Of those that go, the int(0.3 n) + 1 with the highest
    scores are recycled: clustered by density peaks into a tenth as many, whose means follow the
    kept tokens. Means of earlier stages are visual tokens like others. Positions are numbered
    anew.

    The budget names a published schedule: it is about the mean of what a 7B model's 32 layers see,
    not what the last one sees. A ``schedule`` of one's own stands for itself, and the budget is
    then not read.

    Deviations: the official code adds random noise to densities, so that no two are equal; here
    ties go to the lower index. Cluster means are exact, without its 1e-6 in the denominator. Where
    no text token has more than the mean share (the official mean is then over nothing), all rate.
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "SparseVLM (ICML 2025), v1.0"
    keeps_positions: ClassVar[bool] = False

    layers: tuple[int, ...] = Field((2, 6, 15), description=_LAYERS)
    schedule: tuple[int, ...] | None = Field(None, description=_SCHEDULE)

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_rise(cls, layers: object) -> object:
        numbers = _whole_numbers(layers, lowest=0)
        if not numbers or list(numbers) != sorted(set(numbers)):
            raise ValueError(_LAYERS)
        return numbers

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedule_falls(cls, schedule: object) -> object:
        if schedule is None:
            return None
        numbers = _whole_numbers(schedule, lowest=1)
        if not numbers or list(numbers) != sorted(set(numbers), reverse=True):
            raise ValueError(_SCHEDULE)
        return numbers

    @model_validator(mode="after")
    def _layers_have_a_number_each(self) -> "SparseVLM":
        if self.schedule is not None and len(self.schedule) != len(self.layers):
            raise ValueError(
                f"'schedule' has {len(self.schedule)} entries and 'layers' {len(self.layers)}; "
                "give one number for each layer"
            )
        return self

    def pruned_layers(self, budget: int, depth: int) -> tuple[int, ...]:
        """``layers``.

        Raises OptionsError for a budget without a schedule, and where no layer of the model would
        see what the last stage leaves.
        """
        if len(self._counts(budget)) != len(self.layers):
            raise OptionsError(
                f"litelvlm option 'layers' is {list(self.layers)}, but published schedules are "
                f"for {len(self._counts(budget))} layers; name a 'schedule' of "
                f"{len(self.layers)} numbers too."
            )
        if self.layers[-1] >= depth - 1:
            raise OptionsError(
                f"litelvlm option 'layers' is {list(self.layers)}, and this language model has "
                f"{depth} layers; allowed: 0 to {depth - 2}. Name lower ones or a deeper model."
            )
        return self.layers

    def select(self, state: DecoderState, budget: int, stage: int) -> DecoderSelection:
        """The tokens that the raters attend to most, and means of the best of the others."""
        visual = slice(state.start, state.start + state.visual)
        attention = state.attention(_raters(state)).mean(dim=0)
        scores = attention[:, visual].mean(dim=0, keepdim=True)
        count = min(self._counts(budget)[stage], state.visual - 1)
        kept = raster(highest(scores, count))
        pruned = others(kept, state.visual)
        number = int(pruned.shape[1] * _RECYCLED) + 1
        recycled = pruned.gather(1, highest(scores.gather(1, pruned), number))
        return DecoderSelection(kept[0], _cluster_means(state.hidden[visual][recycled[0]]))

    def _counts(self, budget: int) -> tuple[int, ...]:
        if self.schedule is not None:
            return self.schedule
        if budget not in PUBLISHED_SCHEDULES:
            raise OptionsError(
                f"litelvlm option 'budget' comes to {budget} tokens, for which SparseVLM publishes "
                f"no schedule; allowed: {', '.join(map(str, sorted(PUBLISHED_SCHEDULES)))}, or "
                "name a 'schedule'."
            )
        return PUBLISHED_SCHEDULES[budget]


def _raters(state: DecoderState) -> Tensor:
    """Places in ``state.hidden`` of the text tokens that rate, int64 [raters]."""
    behind = len(state.hidden) - state.start - state.visual
    assert behind > 0, "no text follows the image"
    first = len(state.embedded) - behind
    image, text = state.embedded[state.start : first], state.embedded[first:]
    share = (image.float() @ text.float().T).softmax(dim=-1).mean(dim=0)
    rates = share > share.mean()
    rates |= ~rates.any()
    return rates.nonzero()[:, 0] + state.start + state.visual


def _cluster_means(tokens: Tensor) -> Tensor:
    """Density-peak clusters of [tokens, width] as their means, [clusters, width], same dtype.

    A token's density falls with the distances to its nearest; its separation is the distance to
    the nearest denser one, or the largest of all distances for the densest. The tokens with the
    largest product of both are the centres, in that order, and the rest join the nearest centre.
    """
    values = tokens.float()
    count = len(tokens) // _TOKENS_A_CLUSTER + 1
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances / tokens.shape[1] ** 0.5
    nearest = distances.topk(count, dim=-1, largest=False).values
    density = (-nearest.square().mean(dim=-1)).exp()
    denser = density[None, :] > density[:, None]
    separation = torch.where(denser, distances, distances.max()).min(dim=-1).values
    centres = highest((separation * density)[None], count)[0]
    joined = distances[centres].argmin(dim=0)
    joined[centres] = torch.arange(count, device=tokens.device)
    members = nn.functional.one_hot(joined, count).T.to(values.dtype)
    return (members @ values / members.sum(dim=-1, keepdim=True)).to(tokens.dtype)


def _whole_numbers(numbers: object, lowest: int) -> tuple[int, ...]:
    """A list or tuple of whole numbers as a tuple; empty where it is not that."""
    if not isinstance(numbers, list | tuple):
        return ()
    if not all(type(number) is int and number >= lowest for number in numbers):
        return ()
    return tuple(numbers)

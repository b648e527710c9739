"""LiteLVLM: tokens least similar to the text, then those that contribute most to [CLS]."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep, to_device
from vllm_litelvlm.pruning.context import context_signal
from vllm_litelvlm.pruning.ranking import highest, membership, part, ranks, raster


class LiteLVLM(Pruner):
    """LiteLVLM (ICML 2026), sections 4.2 to 4.4.

    Each text ranks the patches by similarity, the wanted end first. The ranks of N texts become
    one key a patch: the worst rank (``variant="paper"``: a patch has to be wanted by every text)
    or the best (``variant="reference"``, the authors' released code: by any text). The
    similarity set S then is

    * ``share`` given: the round(budget * share) patches with the lowest key (Tables 5 and 8;
      half rounds up, at least 1 unless share is 0);
    * ``share`` left out, N = 1: the same with share 0.5 (paper) or 1 (reference);
    * ``share`` left out, N > 1: the patches with key < budget (paper: the intersection of each
      text's budget lowest) or key < budget // N (reference: the union of each text's);
    * ``context`` off: the budget patches with the lowest key (Table 4 #2 and #3).

    With ``guidance="value"``, which is this package's own and not the paper's, the patches are
    ranked by similarity on the value path of the last layer instead, and the wanted end is the
    highest.

    The rest of the budget goes to the patches outside S with the highest context score (Eq. 5).
    Without any text S is empty.

    In two layers, which are this package's own, the base has the highest context scores, and the
    focus the lowest keys outside of it, whose ranks are those among all patches; ``share``,
    ``context`` and ``order`` have no say. Without a text the focus goes on by context.

    Deviations: the paper gives no rule for a fixed share, or no context, with N > 1; ordering by
    the key is ours, and agrees with the intersection and the union wherever those are defined.
    Ties go to the lower patch index.
    """

    name: ClassVar[str] = "litelvlm"
    paper: ClassVar[str] = "LiteLVLM (ICML 2026)"
    reads_text: ClassVar[bool] = True
    layered: ClassVar[bool] = True

    variant: Literal["paper", "reference"] = Field(
        "paper", description='"paper" or "reference" (the authors\' released code)'
    )
    guidance: Literal["similarity", "value"] = Field(
        "similarity",
        description='"similarity" (the method), or "value" (this package\'s own)',
    )
    share: float | None = Field(
        None, ge=0, le=1, description="a number from 0 to 1, or null for the adaptive rule"
    )
    direction: Literal["low", "high"] | None = Field(
        None,
        description='"low" (keep the least similar), "high" (Table 4 #2), or null: "low" for '
        'guidance "similarity" (the method), "high" for "value"',
    )
    context: bool = Field(True, description="true or false (Table 4: no context tokens)")
    order: Literal["raster", "context_first"] | None = Field(
        None,
        description='"raster", "context_first", or null for the variant\'s own order',
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The guidance's similarity, and the context score in the variant's form."""
        return frozenset({Signal.FEATURES, self._similarity, context_signal(self.variant)})

    @property
    def _similarity(self) -> Signal:
        return Signal.SIMILARITY if self.guidance == "similarity" else Signal.VALUE

    def select(self, signals: Signals, budget: int) -> Selection:
        """S first, then the context tokens, then the order that the language model gets."""
        guided = self._similarity_set(signals, budget)
        context = signals[context_signal(self.variant)]
        # Members of S sort above every context score, in raster order: one sort, fixed length.
        kept = highest(context.masked_fill(guided, torch.inf), budget)
        by_text = guided.gather(1, kept)
        if (self.order or ("raster" if self.variant == "paper" else "context_first")) == "raster":
            kept = raster(kept)
        else:  # False sorts before True, and a stable sort keeps the score order within each
            kept = kept.gather(1, torch.sort(by_text.to(torch.uint8), dim=-1, stable=True).indices)
        return keep(signals, kept, guided.gather(1, kept))

    def choose_base(self, signals: Signals, budget: int) -> Tensor:
        """The highest context scores."""
        context = signals[context_signal(self.variant)]
        return membership(highest(context, budget), signals.patches)

    def choose_focus(self, signals: Signals, base: Tensor, budget: int) -> Selection:
        """The lowest keys outside of the base, in raster order."""
        have_text = signals.have_text
        key = self._key(signals)
        if min(signals.text_counts) == 0:
            by_context = ranks(-signals[context_signal(self.variant)])
            key = torch.where(have_text, key, by_context)
        # Every key that counts is below the number of patches.
        kept = raster(highest(-key.masked_fill(base, signals.patches), budget))
        return keep(signals, kept, have_text.expand_as(kept))

    def _similarity_set(self, signals: Signals, budget: int) -> Tensor:
        """Members of S, bool [images, patches]."""
        key = self._key(signals)
        sizes = [self._fixed_size(budget, texts) for texts in signals.text_counts]
        bounds = [
            self._adaptive_bound(budget, texts) if size is None else size
            for size, texts in zip(sizes, signals.text_counts, strict=True)
        ]
        # Adaptive images compare the key itself; the others their place in the key's order.
        adaptive = [size is None for size in sizes]
        if not all(adaptive):
            of_others = ranks(key)
            if any(adaptive):
                which = to_device([[one] for one in adaptive], signals.device, torch.bool)
                key = torch.where(which, key, of_others)
            else:
                key = of_others
        if len(set(bounds)) == 1:
            return key < bounds[0]
        return key < to_device(bounds, signals.device)[:, None]

    def _key(self, signals: Signals) -> Tensor:
        """Worst or best rank over an image's own texts, int64 [images, patches]."""
        similarity = signals[self._similarity]
        if similarity.shape[1] == 0:  # no image of the batch has a text, so no S has members
            return similarity.new_zeros(signals.images, signals.patches, dtype=torch.int64)
        low = (self.direction or ("low" if self.guidance == "similarity" else "high")) == "low"
        places = ranks(similarity if low else -similarity)
        if self.variant == "paper":
            return signals.own_texts(places, -1).amax(dim=1)
        return signals.own_texts(places, signals.patches).amin(dim=1)

    def _fixed_size(self, budget: int, texts: int) -> int | None:
        """How many tokens S has, or None where the texts decide."""
        if texts == 0:
            return 0
        if not self.context:
            return budget
        share = self.share
        if share is None:
            if texts > 1:
                return None
            share = 0.5 if self.variant == "paper" else 1.0
        return 0 if share == 0 else max(1, part(budget, share))

    def _adaptive_bound(self, budget: int, texts: int) -> int:
        return budget if self.variant == "paper" else budget // texts

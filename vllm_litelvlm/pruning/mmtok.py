"""MMTok: tokens that cover the words of the text and the image at once."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep, shared_among
from vllm_litelvlm.pruning.facility import most_covering
from vllm_litelvlm.pruning.likeness import mirrored_cosines
from vllm_litelvlm.pruning.ranking import raster


class MMTok(Pruner):
    """MMTok (Dong et al., ICLR 2026; github.com/Ironieser/MMTok).

    Every word of the text shares itself out over the patches by a softmax of their cosines (the
    language model's input embedding of the word, patches behind the projector) divided by
    ``text_temperature``, every patch by one of its cosines (features) to the patches divided by
    ``image_temperature``. A set of tokens covers of each the largest share that one of them has;
    one token a step is taken by what it adds to the mean over words plus ``image`` times the mean
    over patches. Raster order.

    Words are those of all texts, the beginning of a long text, without articles, pronouns,
    question words and the like. Without a text the image alone is covered. On Qwen-VLs the
    official code takes features before the tower's merger, and the question as it is behind
    "Question: "; here they are those behind the merger, and words as everywhere.
    """

    name: ClassVar[str] = "mmtok"
    paper: ClassVar[str] = "MMTok (ICLR 2026)"
    reads_text: ClassVar[bool] = True

    text_temperature: float = Field(
        0.02, gt=0, le=10, description="a number above 0, to 10: the softmax of a word"
    )
    image_temperature: float = Field(
        0.2, gt=0, le=10, description="a number above 0, to 10: the softmax of a patch"
    )
    image: float = Field(
        0.5, ge=0, le=1000, description="a number from 0 to 1000: the weight of covering patches"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """Words behind the projector's patches, and features."""
        return frozenset({Signal.FEATURES, Signal.WORD_COSINE})

    def select(self, signals: Signals, budget: int) -> Selection:
        """By coverage of both."""
        # Cosines are the same transposed: a row has what one patch is to all others.
        shares = mirrored_cosines(signals.patch_tokens).div_(self.image_temperature).softmax(dim=1)
        shares *= self.image / signals.patches
        shares = torch.cat([self._of_words(signals).transpose(1, 2), shares], dim=2)
        kept = raster(most_covering(shares, budget))
        return keep(signals, kept, signals.have_text.expand_as(kept))

    def _of_words(self, signals: Signals) -> Tensor:
        """Shares of patches in each word by the number of words, 0 in padding.

        float32 [images, words, patches].
        """
        shares = (signals[Signal.WORD_COSINE] / self.text_temperature).softmax(dim=-1)
        return signals.own_words(shared_among(shares, signals.word_counts), 0.0)

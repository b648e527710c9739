"""The contract between methods and whoever serves them.

A method is a frozen options object (:class:`Pruner`) that turns :class:`Signals`, what is known of
a batch of images, into a :class:`Selection`, the tokens that the language model gets. It names the
signals that it needs, so that nothing else is computed, and it never changes its inputs.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.options import StrictModel

#: The place of [CLS] in :attr:`Selection.indices`: before every patch.
CLS = -1


class Signal(StrEnum):
    """What a method can ask for. Patches are in raster order; float32 unless said otherwise.

    "The last layer" is the tower's last (23 of CLIP-L's 24, counted from 0), which LLaVA does not
    run; "the feature layer" is the one before, whose output LLaVA reads.
    """

    #: Output of the feature layer in the tower's dtype, [images, 1 + patches, width], [CLS] first;
    #: of a tower without [CLS], [images, patches, width].
    FEATURES = "features"
    #: The patches behind the projector, [images, patches, width of the language model].
    PROJECTED = "projected"
    #: Eq. 4: dot product of aligned patches and texts, [images, texts, patches].
    SIMILARITY = "similarity"
    #: The same with both sides normalised to length 1.
    COSINE = "cosine"
    #: Half COSINE, half the cosine of those tokens of the text that point most sharply
    #: (:mod:`vllm_litelvlm.pruning.sharpest`), [images, texts, patches].
    TOKEN_COSINE = "token_cosine"
    #: Cosine of patches behind the projector and the language model's input embeddings of the words
    #: that say something, those of all of an image's texts, [images, words, patches].
    WORD_COSINE = "word_cosine"
    #: Dot product of texts and patches on the value path of the last layer, [images, texts,
    #: patches].
    VALUE = "value"
    #: Eq. 5 in the last layer, [images, patches].
    CONTEXT = "context"
    #: Eq. 5 with query and keys normalised to length 1.
    CONTEXT_NORMALISED = "context_normalised"
    #: Attention of [CLS] to the patches in the feature layer, mean over heads, [images, patches].
    CLS_ATTENTION = "cls_attention"
    #: Keys of the patches in the feature layer, mean over heads, [images, patches, head width].
    KEYS = "keys"
    #: Attention of [CLS] to the patches in the last layer as one head of full width,
    #: [images, patches].
    LAST_ATTENTION = "last_attention"
    #: Keys of the patches in the last layer, [images, patches, width].
    LAST_KEYS = "last_keys"
    #: The tower itself (:attr:`Signals.tower`), for methods that work between its blocks.
    TOWER = "tower"


#: Those of a text's one embedding, [images, texts, patches].
EMBEDDING_SIGNALS = frozenset({Signal.SIMILARITY, Signal.COSINE, Signal.VALUE})
#: All that depend on the texts.
TEXT_SIGNALS = EMBEDDING_SIGNALS | {Signal.TOKEN_COSINE, Signal.WORD_COSINE}


class Tower(Protocol):
    """The blocks of a vision tower up to the feature layer, on the images of a batch."""

    @property
    def layers(self) -> int:
        """How many blocks run."""

    def rows(self, images: Sequence[int]) -> "Tower":
        """The same tower on some of the images, in the order given."""

    def embed(self) -> Tensor:
        """The first block's input, [images, 1 + patches, width]."""

    def attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The attention half of a block, residual included, and its keys.

        ``sizes``, float32 [images, tokens], says of how many patches each token is made; their
        logarithms are added to the attention logits. Keys are means over heads, float32 [images,
        tokens, head width].
        """

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """The other half of a block, residual included."""


@dataclass(frozen=True)
class Signals:
    """What is known of ``images`` images of ``patches`` patch tokens each, on one device.

    ``values`` holds the computed signals. Text signals have as many rows as the image with the
    most texts in the batch; rows past an image's own ``text_counts`` entry are padding.
    ``word_counts`` say the same of ``Signal.WORD_COSINE``, and are empty without it.
    ``row_length``: of the grid of patches, where that is no square. ``points``: where they stand,
    where that is no grid: row and column in a plane of patches, and the number of the plane,
    float32 [patches, 3]. Planes have nothing to do with each other.
    """

    images: int
    patches: int
    device: torch.device
    text_counts: Sequence[int]
    values: Mapping[Signal, Tensor] = field(default_factory=dict)
    tower: Tower | None = None
    row_length: int | None = None
    points: Tensor | None = None
    word_counts: Sequence[int] = ()

    def __getitem__(self, signal: Signal) -> Tensor:
        assert signal in self.values, f"signal {signal} was not computed"
        return self.values[signal]

    def rows(
        self, images: Sequence[int], needs: frozenset[Signal] = frozenset(Signal)
    ) -> "Signals":
        """The signals that ``needs`` names of some of the images, in the order given.

        Where that is every image as it is, nothing is left out.
        """
        if list(images) == list(range(self.images)):
            return self
        index = to_device(list(images), self.device)
        values = {
            name: value.index_select(0, index)
            for name, value in self.values.items()
            if name in needs
        }
        tower = self.tower if Signal.TOWER in needs else None
        text_counts = [self.text_counts[image] for image in images]
        word_counts = [self.word_counts[image] for image in images if self.word_counts]
        for name in TEXT_SIGNALS & values.keys():
            counts = word_counts if name is Signal.WORD_COSINE else text_counts
            values[name] = values[name][:, : max(counts, default=0)]
        return Signals(
            images=len(images),
            patches=self.patches,
            device=self.device,
            text_counts=text_counts,
            values=values,
            tower=tower.rows(images) if tower is not None else None,
            row_length=self.row_length,
            points=self.points,
            word_counts=word_counts,
        )

    @property
    def columns(self) -> int:
        """Of the grid of patches; where they fill no square, its last row is short."""
        return self.row_length or math.isqrt(self.patches - 1) + 1

    @property
    def patch_tokens(self) -> Tensor:
        """Features of the patches alone, [images, patches, width], the tower's dtype."""
        return self[Signal.FEATURES][:, -self.patches :]

    @property
    def cls_tokens(self) -> Tensor:
        """The feature of [CLS], [images, 1, width]; [images, 0, width] where there is none."""
        return self[Signal.FEATURES][:, : -self.patches]

    def own_texts(self, scores: Tensor, otherwise: float) -> Tensor:
        """A text signal with ``otherwise`` in its padding; what has none stays as it is."""
        return self._own(scores, self.text_counts, otherwise)

    def own_words(self, scores: Tensor, otherwise: float) -> Tensor:
        """The same of ``Signal.WORD_COSINE``."""
        return self._own(scores, self.word_counts, otherwise)

    @property
    def have_text(self) -> Tensor:
        """Which images have any, bool [images, 1]."""
        some = {count > 0 for count in self.text_counts}
        if len(some) == 1:
            return torch.full((self.images, 1), some.pop(), device=self.device)
        return to_device([[count > 0] for count in self.text_counts], self.device, torch.bool)

    def _own(self, scores: Tensor, counts: Sequence[int], otherwise: float) -> Tensor:
        """``scores`` [images, rows, ...] with ``otherwise`` past each image's count of rows."""
        if min(counts, default=0) == scores.shape[1]:
            return scores
        padding = [[row >= count for row in range(scores.shape[1])] for count in counts]
        is_padding = to_device(padding, self.device, torch.bool)
        return scores.masked_fill(is_padding.view(*scores.shape[:2], 1), otherwise)


@dataclass(frozen=True)
class Selection:
    """The tokens of a batch of images, in the order in which the language model gets them.

    ``tokens`` [images, kept, width]: in the feature space and dtype of ``Signal.FEATURES``.
    ``indices`` int64 [images, kept]: whose place each token takes. A kept or merged token has the
    index of a patch, [CLS] has :data:`CLS`, and a token that stands for many patches and follows
    the image has the number of patches (a second one that plus 1, and so on). No two tokens of an
    image have the same.
    ``guided`` bool [images, kept]: whether the text had a say in the token's choice (red in the
    paper's Figure 5) or not (green).
    """

    tokens: Tensor
    indices: Tensor
    guided: Tensor

    def unbind(self) -> "list[Selection]":
        """One selection an image, each without the leading dimension."""
        return [
            Selection(*one)
            for one in zip(
                self.tokens.unbind(), self.indices.unbind(), self.guided.unbind(), strict=True
            )
        ]


class Pruner(StrictModel):
    """A pruning method; its fields are its options.

    Implementations give an output whose length depends on the budget alone, treat every image of
    a batch as if it were alone, and never make the host wait for the device.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    #: Whether the text has a say. What is not read is left out of the cache identity.
    reads_text: ClassVar[bool] = False
    #: Whether the method means nothing without a text, so that a request without one is refused.
    requires_text: ClassVar[bool] = False
    #: Whether the method can choose in two layers, by :meth:`choose_base` and :meth:`choose_focus`.
    layered: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """The signals that :meth:`select` reads."""

    def output_count(self, budget: int) -> int:
        """How many tokens an image gets; the prompt and the model both call this."""
        return budget

    def places(self, patches: int) -> range:
        """All that :attr:`Selection.indices` may hold, without gaps.

        Each is one position of the language model where tokens keep their own
        (``positions: "original"``), and what follows the image comes behind the last.
        """
        return range(patches)

    @abstractmethod
    def select(self, signals: Signals, budget: int) -> Selection:
        """Give every image of the batch ``output_count(budget)`` tokens.

        ``budget`` is from 1 to ``signals.patches``.
        """

    def choose_base(self, signals: Signals, budget: int) -> Tensor:
        """The first of two layers: what is kept of each image whatever is asked about it.

        ``signals`` lack those of :data:`TEXT_SIGNALS`.

        Returns:
            Membership of ``budget`` patches an image, bool [images, patches].
        """
        raise NotImplementedError(f"{self.name} does not choose in layers")

    def choose_focus(self, signals: Signals, base: Tensor, budget: int) -> Selection:
        """The second layer: ``budget`` tokens an image for its texts, outside of its base.

        Where an image has no text, the best that the base left. ``base`` is as
        :meth:`choose_base` gives it.
        """
        raise NotImplementedError(f"{self.name} does not choose in layers")


def keep(signals: Signals, indices: Tensor, guided: Tensor | None = None) -> Selection:
    """The patches at ``indices``, int64 [images, kept], as they are; none guided by default."""
    if guided is None:
        guided = torch.zeros_like(indices, dtype=torch.bool)
    return Selection(take(signals.patch_tokens, indices), indices, guided)


def append(selection: Selection, token: Tensor, place: int) -> Selection:
    """Put one token, [images, 1, width], behind each image's; nothing guided it."""
    behind = selection.indices.new_full((len(token), 1), place)
    return Selection(
        torch.cat([selection.tokens, token], dim=1),
        torch.cat([selection.indices, behind], dim=1),
        torch.cat([selection.guided, torch.zeros_like(behind, dtype=torch.bool)], dim=1),
    )


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """``rows[image, indices[image]]`` for every image.

    Args:
        rows: [images, patches, width].
        indices: int64 [images, kept].

    Returns:
        [images, kept, width].
    """
    return rows.gather(1, indices[:, :, None].expand(-1, -1, rows.shape[-1]))


def shared_among(totals: Tensor, counts: Sequence[int]) -> Tensor:
    """``totals`` [images, ...], each image's divided by its count, or by 1 where that is 0."""
    divisors = [max(1, count) for count in counts]
    if len(set(divisors)) == 1:
        return totals / divisors[0]
    by_image = to_device(divisors, totals.device)
    return totals / by_image.view(-1, *[1] * (totals.dim() - 1))


def to_device(
    numbers: Sequence[float] | Sequence[Sequence[float]] | NDArray[Any],
    device: torch.device,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Numbers of the host as a tensor on ``device``, without waiting for the device."""
    tensor = torch.tensor(numbers, dtype=dtype, device="cpu")
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


SEED = Field(0, ge=0, lt=2**63, description="a whole number from 0 and below 2**63")

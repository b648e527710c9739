"""What guidance asks of the part that scores patches, one kind of vision tower each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Signal

#: What the signals of the tower's last layer have in common, computed at most once a batch.
LastLayer = TypeVar("LastLayer")


class Named(nn.Module, ABC):
    """A module whose parameters have names in the checkpoint that a tower was taken from."""

    @abstractmethod
    def clip_names(self) -> dict[str, str]:
        """Own parameter name to the tensor's name in the checkpoint."""


class TextTower(Named):
    """From token ids of texts, integer [texts, length], to what patches are compared with."""

    @abstractmethod
    def forward(self, token_ids: Tensor) -> Tensor:
        """One embedding a text, float32 [texts, text_width] of the tower's scorer."""

    @abstractmethod
    def tokens(self, token_ids: Tensor) -> Tensor:
        """Of the text as COSINE takes it, then of every token, float32 [texts, 1 + length, w]."""


class Scorer(Named, Generic[LastLayer]):
    """Turns a tower's hidden states and the embeddings of a request's texts into signals.

    Hidden states are [images, tokens, width], any float dtype, [CLS] first where there is one.
    """

    #: The checkpoint that a tower of this kind was taken from, in sentences.
    kind: ClassVar[str]
    #: The signals that are computed from hidden state -3.
    from_feature_input: ClassVar[frozenset[Signal]] = frozenset()
    #: Of one text's embedding.
    text_width: int

    @abstractmethod
    def last_layer(self, hidden: Tensor) -> LastLayer:
        """Of ``hidden``, hidden state -2; nothing is computed before it is read."""

    @abstractmethod
    def image_signals(
        self,
        hidden: Tensor,
        feature_input: Tensor | None,
        needs: frozenset[Signal],
        last: LastLayer | None = None,
    ) -> dict[Signal, Tensor]:
        """The needed signals that depend on the images alone.

        Args:
            hidden: hidden state -2.
            feature_input: hidden state -3; for :attr:`from_feature_input`.
            needs: the signals to compute; those that are not the scorer's are passed over.
            last: of ``hidden``, where :meth:`text_signals` gets it too.
        """

    @abstractmethod
    def text_signals(
        self,
        hidden: Tensor,
        texts: Sequence[Tensor],
        needs: frozenset[Signal],
        last: LastLayer | None = None,
    ) -> dict[Signal, Tensor]:
        """The needed signals that depend on the texts too.

        Args:
            hidden: as for :meth:`image_signals`.
            texts: one embedding tensor an image, float32 [texts, text_width].
            needs: the signals to compute.
            last: as for :meth:`image_signals`.
        """

    @abstractmethod
    def aligned(self, hidden: Tensor) -> Tensor:
        """The patches where COSINE compares them with texts, float32 [images, patches, width]."""

    def follow(self, feature_layer: Mapping[str, Tensor]) -> None:
        """Take the weights of the feature layer's ``norm``, ``query`` and ``key`` as they are.

        Asked for only where :attr:`from_feature_input` has any.
        """
        raise NotImplementedError(f"{self.kind} scores without the feature layer")

"""What computes the signals that methods go by."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Signals

Images = TypeVar("Images", contravariant=True)


class Guidance(Protocol[Images]):
    """Scores the tokens of images by the texts of their requests, in one model family's way.

    ``Images`` is how that family hands over a batch of images that have the same grid of tokens.
    """

    #: The signals that there are; a method that reads others is refused by name.
    available: ClassVar[frozenset[Signal]]

    def signals(
        self,
        images: Images,
        text_ids: Sequence[Tensor],
        needs: frozenset[Signal],
        word_ids: Sequence[Tensor] = (),
    ) -> Signals:
        """Compute the needed signals, all of them available.

        ``text_ids`` holds one integer [texts, length] tensor an image, on the CPU; for WORD_COSINE,
        ``word_ids`` one integer [words] (:func:`~vllm_litelvlm.vision.words.word_ids`).
        """

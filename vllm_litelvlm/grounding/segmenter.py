"""From a picture and prompts to masks."""

import logging

from PIL import Image
from torch import Tensor

from vllm_litelvlm.grounding.device import choose_device
from vllm_litelvlm.grounding.features import KEPT_BYTES, FeatureCache
from vllm_litelvlm.grounding.layout import read_sam_config
from vllm_litelvlm.grounding.masks import Mask
from vllm_litelvlm.grounding.picture import as_rgb, picture_key
from vllm_litelvlm.grounding.sam import Sam

logger = logging.getLogger(__name__)


class Segmenter:
    """Masks of expressions in pictures, each of which is encoded once. Threads may share one.

    Args:
        sam: makes the masks.
        features: keeps what SAM knows of pictures; one of the usual size if not given.
    """

    def __init__(self, sam: Sam, features: FeatureCache | None = None) -> None:
        self.sam = sam
        self.features = FeatureCache() if features is None else features

    @classmethod
    def load(
        cls,
        model: str,
        revision: str | None = None,
        device: str | None = None,
        cache_gb: float = KEPT_BYTES / 2**30,
        processes: int = 1,
    ) -> "Segmenter":
        """Of a checkpoint of the layout in :mod:`~vllm_litelvlm.grounding.layout`.

        Args:
            model: hub name or folder of the whole model.
            revision: of a hub repository.
            device: where to compute; None chooses, by :func:`.device.choose_device`.
            cache_gb: GiB of features that are kept.
            processes: that load one each, on the same machine.

        Raises WeightsError naming what is missing or does not fit.
        """
        kept = int(cache_gb * 2**30)
        where = choose_device(device, read_sam_config(model, revision), kept, processes)
        logger.info("SAM computes on %s.", where)
        return cls(Sam.load(model, revision, where), FeatureCache(kept))

    def masks(self, picture: Image.Image, prompts: Tensor) -> list[Mask]:
        """A mask a prompt, of the picture's own size.

        Args:
            picture: of any mode, as it was given to the language model.
            prompts: float [expressions, prompt width].

        Raises CompatibilityError for prompts of another width, or that are not finite.
        """
        picture = as_rgb(picture)
        features = self.features.get(picture_key(picture), lambda: self.sam.encode(picture))
        return self.sam.masks(features, prompts, picture.size)

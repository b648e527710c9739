"""From a picture and prompts to masks."""

from PIL import Image
from torch import Tensor

from vllm_litelvlm.grounding.features import FeatureCache
from vllm_litelvlm.grounding.masks import Mask
from vllm_litelvlm.grounding.picture import as_rgb, picture_key
from vllm_litelvlm.grounding.sam import Sam


class Segmenter:
    """Masks of expressions in pictures, each of which is encoded once. Threads may share one.

    Args:
        sam: makes the masks.
        features: keeps what SAM knows of pictures; one of the usual size if not given.
    """

    def __init__(self, sam: Sam, features: FeatureCache | None = None) -> None:
        self.sam = sam
        self.features = FeatureCache() if features is None else features

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

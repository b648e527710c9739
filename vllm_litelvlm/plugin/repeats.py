"""What becomes of an image that comes back with another text.

Another text keeps other tokens of an image, so vLLM's prefix cache has nothing for it. Served
whole, the image has the same tokens whatever the text, and all but the first such request find
them there. Which is cheaper depends on how many texts are still to come, which nobody knows; the
``repeat`` option says what to assume.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Images that are remembered; each takes a few hundred bytes.
_MOST_IMAGES = 16_384


@dataclass
class _Image:
    """Digests of the texts that an image was pruned by, and how many tokens they kept."""

    texts: set[bytes] = field(default_factory=set)
    tokens: int = 0


class Repeats:
    """Remembers which texts each image was pruned by; the least recently asked about go first.

    Args:
        patches: visual tokens of a whole image.
    """

    def __init__(self, patches: int, most_images: int = _MOST_IMAGES) -> None:
        self._patches, self._most = patches, most_images
        self._images: OrderedDict[bytes, _Image] = OrderedDict()

    def prunes(
        self,
        keys: Sequence[bytes],
        texts: Sequence[str],
        budget: int,
        repeat: Literal["full", "auto"],
    ) -> bool:
        """Whether a request's images are pruned, or served whole.

        Texts that have pruned an image prune it again. Another text prunes it if no text did so
        before (``"full"``), or as long as all texts together keep no more tokens than the image
        has (``"auto"``). A request is pruned if all of its images are, and is remembered then.
        """
        digest = hashlib.sha256("\0".join(texts).encode()).digest()
        images = [self._image(key) for key in dict.fromkeys(keys)]
        for image in images:
            room = self._patches - budget if repeat == "auto" else 0
            if digest not in image.texts and image.tokens > room:
                return False
        for image in images:
            if digest not in image.texts:
                image.texts.add(digest)
                image.tokens += budget
        return True

    def _image(self, key: bytes) -> _Image:
        image = self._images.setdefault(key, _Image())
        self._images.move_to_end(key)
        if len(self._images) > self._most:
            self._images.popitem(last=False)
        return image

"""What becomes of an image that comes back with another text.

Another text keeps other tokens of an image, so vLLM's prefix cache has nothing for it, where stock
vLLM finds the whole image there. Pruning the image for its first text saved prefill; how many
texts are still to come, nobody knows. The ``repeat`` option says what to do.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Images that are remembered, each with a few of its texts.
_MOST_IMAGES = 4096

Texts = tuple[str, ...]


@dataclass
class _Image:
    """Texts that an image was pruned for, one request's after another's, the latest last.

    ``prompts`` tells how many tokens the latest request of each had, ``spent`` how many all but
    the first prefilled anew; ``shared`` are the texts that from some time on guide whatever comes.
    """

    prompts: dict[Texts, int] = field(default_factory=dict)
    spent: int = 0
    shared: Texts | None = None


class Repeats:
    """Remembers which texts each image was pruned for; the least recently asked about go first.

    A ``key`` tells the image, or the images of a request, together with how they are pruned.
    """

    def __init__(self, most_images: int = _MOST_IMAGES) -> None:
        self._most = most_images
        self._images: OrderedDict[bytes, _Image] = OrderedDict()

    def is_first(self, key: bytes, texts: Texts) -> bool:
        """Whether these are the texts that the image came with first (``repeat: "full"``)."""
        image = self._image(key)
        if not image.prompts:
            image.prompts[texts] = 0
        return texts in image.prompts

    def guiding(self, key: bytes, texts: Texts, prompt: int, saved: int, most: int) -> Texts:
        """The texts that guide a request (``repeat: "auto"``): its own, or shared ones.

        Whatever comes, all requests together prefill no more tokens than without pruning: texts
        guide for themselves as long as ``saved`` pays for that, and for a shared set to come. Then
        the set for all texts so far, these included, is everybody's; where ``saved`` does not pay
        for it, the latest that is there already.

        Args:
            key: the image and how it is pruned.
            texts: what would guide the request by itself.
            prompt: tokens of the pruned request. What it has more than the latest request with the
                same texts is prefilled anew if it guides itself.
            saved: tokens that pruning took out of the first request.
            most: how many texts, the latest, may guide together.
        """
        image = self._image(key)
        if image.shared is not None:
            return image.shared
        anew = max(0, prompt - image.prompts.get(texts, 0)) if image.prompts else 0
        if anew == 0 or image.spent + anew + prompt <= saved:
            image.spent += anew
            image.prompts.pop(texts, None)
            image.prompts[texts] = prompt
            return texts
        if image.spent + prompt <= saved:
            image.shared = _together([*image.prompts, texts], most)
        else:
            image.shared = next(reversed(image.prompts))
        return image.shared

    def _image(self, key: bytes) -> _Image:
        image = self._images.setdefault(key, _Image())
        self._images.move_to_end(key)
        if len(self._images) > self._most:
            self._images.popitem(last=False)
        return image


def _together(asked: Sequence[Texts], most: int) -> Texts:
    """Every text once, in the order of asking."""
    return tuple(dict.fromkeys(text for texts in asked for text in texts))[-most:]

"""Where a request's images stand in its prompt, in one layer or in two.

In two layers every image is a base, which no text has touched, and every turn brings a focus for
each image so far, chosen by the turn's text:

    [template] [base] [focus of turn 1] [question 1] [answer 1] [focus of turn 2] [question 2]

Another question about the image, and another turn, finds in vLLM's prefix cache whatever stands
before its own focus. What stands anywhere depends on nothing behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.turns import Turn
from vllm_litelvlm.pruning.keep_all import KeepAll

#: Which of the user's messages guide.
Guide = Literal["last", "first", "all"]

#: A base may end at a block of the KV cache where that leaves the focus between a quarter and twice
#: of what it was to be.
_LEAST_FOCUS, _MOST_FOCUS = 0.25, 2.0


@dataclass(frozen=True)
class Item:
    """An image, or a layer of one. ``image`` numbers the request's images in order."""

    image: int
    plan: Plan


@dataclass(frozen=True)
class Layout:
    """A prompt with one placeholder for each item, in the items' order."""

    prompt: list[int]
    items: list[Item]


@dataclass(frozen=True)
class Call:
    """A focus for images, in front of the prompt's token number ``place``.

    For all images before it, or ``only_new`` ones, which have none yet.
    """

    place: int
    texts: tuple[str, ...]
    only_new: bool = False


def guiding_texts(turns: Sequence[str], guide: Guide, most: int) -> tuple[str, ...]:
    """The texts that guide a request in one layer, of its turns' texts; the latest of too many."""
    said = [text for text in turns if text]
    wanted = {"last": said[-1:], "first": said[:1], "all": said}[guide]
    return tuple(wanted[-most:])


def calls(turns: Sequence[Turn], options: PruningOptions, most: int) -> list[Call]:
    """What each turn brings: a focus by its own text, or the last before it where it has none.

    By ``guide: "all"`` it is chosen by the texts of all turns up to it. Where every turn would
    bring the same (``texts`` that were named, or ``guide: "first"``), only images that have none
    yet get one. ``most``: texts of a focus.
    """
    said = [turn.text for turn in turns]
    same = options.texts is not None or options.guide == "first"
    return [
        Call(
            turn.place,
            options.texts or guiding_texts(said[: number + 1], options.guide, most),
            only_new=same,
        )
        for number, turn in enumerate(turns)
    ]


def one_layer(prompt: Sequence[int], plans: Sequence[Plan]) -> Layout:
    """Every image with all of its tokens where the prompt has it; ``plans``: one an image."""
    return Layout(list(prompt), [Item(image, plan) for image, plan in enumerate(plans)])


def two_layers(
    prompt: Sequence[int],
    image_token: int,
    plans: Sequence[Plan],
    calls: Sequence[Call],
    *,
    focuses: Sequence[int],
    patches: int,
    block: int,
) -> Layout:
    """Every image as a base, and a focus for each where it is called for.

    The images of a conversation together never take more tokens than unpruned: where a turn's focus
    on all of them would, the newest get one.

    Args:
        prompt: token ids, with one ``image_token`` an image.
        image_token: the placeholder's id.
        plans: one an image; base and first focus together have its budget.
        calls: in the order of their places.
        focuses: tokens of each image's focus, where its base ends at no block; an image with none
            is a base alone, or whole where its plan keeps all.
        patches: of an image.
        block: tokens of a block of the KV cache; 0 where none is kept.
    """
    page = _Page(image_token, plans, focuses, patches)
    waiting = list(calls)
    for place, token in enumerate(prompt):
        while waiting and waiting[0].place <= place:
            page.answer(waiting.pop(0))
        if token == image_token:
            page.add_image(block)
        else:
            page.add_token(token)
    for call in waiting:
        page.answer(call)
    return Layout(page.prompt, page.items)


class _Page:
    """A prompt that is being laid out in two layers."""

    def __init__(
        self, image_token: int, plans: Sequence[Plan], focuses: Sequence[int], patches: int
    ) -> None:
        self._image_token, self._patches = image_token, patches
        self._plans, self._focuses = plans, focuses
        self.prompt: list[int] = []
        self.items: list[Item] = []
        #: What the prompt comes to, with all tokens of its items.
        self.tokens = 0
        self._bases: list[int] = []  # tokens of each image's
        self._room = 0  # tokens that the images would have more, were they whole
        self._focused = 0  # images that have a focus

    def add_token(self, token: int) -> None:
        self.prompt.append(token)
        self.tokens += 1

    def add_image(self, block: int) -> None:
        image = len(self._bases)
        plan, focus = self._plans[image], self._focuses[image]
        self._room += self._patches if plan.window is None else plan.window.patches
        base = _base_tokens(self.tokens, plan.budget, focus, block) if focus else plan.budget
        self._bases.append(base)
        whole = isinstance(plan.pruner, KeepAll)
        self._add(Item(image, plan if whole else plan.base_of(base)))

    def answer(self, call: Call) -> None:
        """Add a focus on as many of the newest images as there is room for."""
        room, chosen = self._room, []
        for image in reversed(range(self._focused if call.only_new else 0, len(self._bases))):
            if not self._focuses[image]:
                continue
            item = Item(image, self._plans[image].focus_on(call.texts, self._bases[image]))
            room -= item.plan.count
            if room < 0:
                break
            chosen.append(item)
        for item in reversed(chosen):
            self._add(item)
        self._focused = len(self._bases)

    def _add(self, item: Item) -> None:
        self.prompt.append(self._image_token)
        self.items.append(item)
        self.tokens += item.plan.count
        self._room -= item.plan.count


def _base_tokens(start: int, budget: int, focus: int, block: int) -> int:
    """How many tokens a base has that starts at token ``start``.

    All but the focus, or up to the nearest end of a block.
    """
    asked = budget - focus
    if block == 0:
        return asked
    end = start + asked
    ends = [-(-end // block) * block, end // block * block]
    bases = [
        one - start
        for one in ends
        if one > start and _LEAST_FOCUS * focus <= start + budget - one <= _MOST_FOCUS * focus
    ]
    return min(bases, key=lambda base: abs(base - asked), default=asked)

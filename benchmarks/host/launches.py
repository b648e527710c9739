"""How many launches a GPU gets for a method's guidance and selection, counted without a GPU.

What a launch is, and how it is seen: :mod:`benchmarks.host.fake_gpu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from benchmarks.host.fake_gpu import GPU, counted, fake_gpu
from benchmarks.selection_inputs import GEOMETRIES, TEXT_TOKENS, WORDS
from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Signal, Signals, to_device
from vllm_litelvlm.pruning.batch import choose_bases, prune
from vllm_litelvlm.pruning.order import Layer, Order
from vllm_litelvlm.pruning.registry import build_pruner, method_names
from vllm_litelvlm.pruning.scores import cosine_score
from vllm_litelvlm.pruning.window import Window
from vllm_litelvlm.vision.clip import ClipScorer, LastLayer
from vllm_litelvlm.vision.tokens import token_cosines

#: CLIP-L/336, whose last layer LLaVA does not run.
GEOMETRY = GEOMETRIES["large"]
PATCHES = (GEOMETRY.image_size // GEOMETRY.patch_size) ** 2
WINDOW = Window(24, top=3, bottom=21, left=0, right=24)
BUDGETS, IMAGES = (64, 192), (1, 8)


@dataclass(frozen=True)
class Form:
    """A method, and which layer of a request is asked for."""

    method: str
    layer: Layer = Layer.WHOLE
    window: Window | None = None

    @property
    def name(self) -> str:
        layer = "" if self.layer is Layer.WHOLE else f", {self.layer}"
        return f"{self.method}{layer}{', in a window' if self.window else ''}"

    def orders(self, budget: int, images: int) -> list[Order]:
        pruner = build_pruner(self.method, {})
        base = 0 if self.layer is Layer.WHOLE else budget * 3 // 4
        if self.layer is not Layer.WHOLE:
            budget = base if self.layer is Layer.BASE else budget - base
        if self.method == "keep-all":
            budget = self.window.patches if self.window else PATCHES
        return [Order(pruner, budget, self.layer, base, self.window)] * images


@dataclass(frozen=True)
class Count:
    """Launches for one batch whose images all ask for the same."""

    form: Form
    images: int
    budget: int
    guidance: int
    selection: int

    @property
    def together(self) -> int:
        return self.guidance + self.selection


def forms() -> list[Form]:
    """Every method, in one layer and in two, on the whole grid and in a window."""
    found = []
    for method in method_names():
        pruner = build_pruner(method, {})
        layers = list(Layer) if pruner.layered else [Layer.WHOLE]
        windows = [None] if Signal.TOWER in pruner.needs else [None, WINDOW]
        found += [Form(method, layer, window) for window in windows for layer in layers]
    return found


def measure(
    chosen: Sequence[Form] | None = None,
    budgets: Sequence[int] = BUDGETS,
    images: Sequence[int] = IMAGES,
) -> list[Count]:
    """Count the launches of some forms, or of all."""
    with fake_gpu():
        scorer = _scorer()
        return [
            _count(scorer, form, [1] * batch, budget)
            for form in (forms() if chosen is None else chosen)
            for batch in images
            for budget in budgets
        ]


def names(form: Form, texts: Sequence[int], budget: int) -> tuple[list[str], list[str]]:
    """What is launched, for guidance and for selection, in order; ``texts``: of each image."""
    with fake_gpu():
        return _launched(_scorer(), form, texts, budget)


def markdown(counts: Sequence[Count]) -> str:
    """A row a form: guidance + selection for every size of batch and budget."""
    sizes = list(dict.fromkeys((count.images, count.budget) for count in counts))
    heads = [f"{images} × {budget}" for images, budget in sizes]
    lines = [
        "| images × budget | " + " | ".join(heads) + " |",
        "| --- " + "| ---: " * len(sizes) + "|",
    ]
    for form in dict.fromkeys(count.form for count in counts):
        cells = [f"{c.guidance} + {c.selection}" for c in counts if c.form == form]
        lines.append(f"| {form.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(scorer: ClipScorer, form: Form, texts: Sequence[int], budget: int) -> Count:
    guidance, selection = _launched(scorer, form, texts, budget)
    return Count(form, len(texts), budget, len(guidance), len(selection))


def _launched(
    scorer: ClipScorer, form: Form, texts: Sequence[int], budget: int
) -> tuple[list[str], list[str]]:
    images = len(texts)
    orders = form.orders(budget, images)
    hidden, before = (_made(images, 1 + PATCHES, GEOMETRY.vision_width) for _ in range(2))
    embedded = [_made(count, GEOMETRY.projection, dtype=torch.float32) for count in texts]
    needs = orders[0].needs
    projected = _made(images, PATCHES, GEOMETRY.llm_width, dtype=torch.float32)
    with counted() as guidance:
        last = LastLayer(scorer, hidden)
        values = scorer.image_signals(hidden, before, needs, last)
        values |= scorer.text_signals(hidden, embedded, needs, last)
        if Signal.TOKEN_COSINE in needs:
            values[Signal.TOKEN_COSINE] = _token_cosine(scorer, hidden, texts)
        if Signal.WORD_COSINE in needs:
            words = _made(images, WORDS, GEOMETRY.llm_width)  # as the layer gives them
            values[Signal.WORD_COSINE] = cosine_score(projected, words.float())
    values[Signal.FEATURES] = hidden
    if Signal.PROJECTED in needs:
        values[Signal.PROJECTED] = projected
    tower = _Tower(hidden) if Signal.TOWER in needs else None
    words_of = [WORDS] * images if Signal.WORD_COSINE in needs else []
    signals = Signals(images, PATCHES, GPU, list(texts), values, tower, word_counts=words_of)
    bases: Sequence[Tensor | None] = [None] * images
    if form.layer is Layer.FOCUS:  # on a base that is remembered
        bases = list(_made(images, PATCHES, dtype=torch.bool).unbind())
    with counted() as selection:
        if form.layer is Layer.BASE:
            bases = list(choose_bases(_untexted(signals), orders).unbind())
        prune(signals, orders, bases)
    return guidance.names, selection.names


def _token_cosine(scorer: ClipScorer, hidden: Tensor, texts: Sequence[int]) -> Tensor:
    """Of different texts, as :class:`TowerGuidance` has it from their tokens."""
    numbers = iter(range(sum(texts)))
    texts_of = [[next(numbers) for _ in range(count)] for count in texts]

    def tokens_of(some: list[int]) -> tuple[Tensor, Tensor]:
        states = _made(len(some), 1 + TEXT_TOKENS, GEOMETRY.projection, dtype=torch.float32)
        return states, to_device([[True] * TEXT_TOKENS] * len(some), GPU, torch.bool)

    return token_cosines(scorer.aligned(hidden), texts_of, tokens_of)


def _untexted(signals: Signals) -> Signals:
    values = {name: value for name, value in signals.values.items() if name not in TEXT_SIGNALS}
    return Signals(signals.images, PATCHES, GPU, signals.text_counts, values)


def _made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=GPU)


def _scorer() -> ClipScorer:
    """The scorer of the geometry, its weights fake."""
    config = CLIPVisionConfig(
        hidden_size=GEOMETRY.vision_width,
        num_hidden_layers=GEOMETRY.vision_layers,
        num_attention_heads=GEOMETRY.vision_heads,
        image_size=GEOMETRY.image_size,
        patch_size=GEOMETRY.patch_size,
    )
    with torch.device("meta"):
        scorer = ClipScorer(config, GEOMETRY.projection, torch.bfloat16)
    for module in scorer.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            made = _made(*weight.shape, dtype=weight.dtype)
            module.register_parameter(name, nn.Parameter(made, requires_grad=False))
    return scorer


@dataclass(frozen=True)
class _Tower:
    """A tower whose own work is none; what is merged between its blocks is what counts."""

    hidden: Tensor
    layers: int = GEOMETRY.vision_layers - 1

    def rows(self, images: Sequence[int]) -> "_Tower":
        return _Tower(self.hidden[: len(images)], self.layers)

    def embed(self) -> Tensor:
        return self.hidden

    def attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        width = GEOMETRY.vision_width // GEOMETRY.vision_heads
        return hidden, _made(*hidden.shape[:2], width, dtype=torch.float32)

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        return hidden


if __name__ == "__main__":
    print(markdown(measure()))

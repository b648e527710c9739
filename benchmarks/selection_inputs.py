"""What the selection benchmark gives to methods: signals, hidden states, a tower, all made up."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from vllm_litelvlm.demo.checkpoint import LARGE, TINY, Geometry
from vllm_litelvlm.evaluation.tower import HfTower, vision_model
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.scores import cosine_score
from vllm_litelvlm.vision.clip import ClipScorer
from vllm_litelvlm.vision.text import ClipTextTower
from vllm_litelvlm.vision.tokens import token_cosines

#: CLIP-L/336 with the projector of LLaVA-1.5-7B, and one for trying the benchmark out.
GEOMETRIES = {"large": replace(LARGE, llm_width=4096), "tiny": TINY}

#: Of a text, a short question with its first and last token.
TEXT_TOKENS = 20
#: Of a text, those that say something.
WORDS = 8
#: The signals that sum to about 1 over an image, and cosines of which exponentials are taken; all
#: others are normal.
_PROBABILITIES = {Signal.CLS_ATTENTION, Signal.LAST_ATTENTION}
_SMALL = {Signal.TOKEN_COSINE, Signal.WORD_COSINE}


@dataclass(frozen=True)
class Size:
    """A batch of images, and how many tokens of each stay."""

    patches: int
    images: int
    budget: int


@dataclass(frozen=True)
class FreeTower:
    """A :class:`~vllm_litelvlm.pruning.base.Tower` whose blocks do nothing and cost nothing.

    ``hidden`` [images, 1 + patches, width]; ``keys`` float32 [images, 1 + patches, head width].
    """

    hidden: Tensor
    keys: Tensor
    layers: int

    def rows(self, images: Sequence[int]) -> "FreeTower":
        return FreeTower(self.hidden[list(images)], self.keys[list(images)], self.layers)

    def embed(self) -> Tensor:
        return self.hidden

    def attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of as many tokens as are left."""
        return hidden, self.keys[:, : hidden.shape[1]]

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        return hidden


class Inputs:
    """Makes inputs of one geometry, and holds the modules that guidance runs, with random weights.

    Every call makes new tensors, which nobody else holds.
    """

    def __init__(
        self, geometry: Geometry, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        self.geometry, self.dtype, self.device = geometry, dtype, device
        #: Patch tokens of the tower's own images.
        self.patches = (geometry.image_size // geometry.patch_size) ** 2
        self._random = torch.Generator(device).manual_seed(seed)
        torch.manual_seed(seed)
        width, llm_width = geometry.vision_width, geometry.llm_width
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=geometry.vision_layers,
            num_attention_heads=geometry.vision_heads,
            image_size=geometry.image_size,
            patch_size=geometry.patch_size,
        )
        self._scorer = ClipScorer(config, geometry.projection, dtype).to(device)
        text_config = CLIPTextConfig(
            hidden_size=geometry.text_width,
            intermediate_size=4 * geometry.text_width,
            num_hidden_layers=geometry.text_layers,
            num_attention_heads=max(1, geometry.text_width // 64),
            projection_dim=geometry.projection,
        )
        self._text_tower = ClipTextTower(text_config, dtype).to(device).eval()
        self._projector = nn.Sequential(
            nn.Linear(width, llm_width), nn.GELU(), nn.Linear(llm_width, llm_width)
        ).to(device, dtype)
        config.num_hidden_layers -= 1  # LLaVA does not run the last
        tower = CLIPVisionModel._from_config(config, attn_implementation="sdpa", dtype=dtype)
        self._tower = tower.to(device).eval()

    def signals(self, needs: frozenset[Signal], size: Size) -> Signals:
        """Random values of the signals that ``needs`` names; one text an image."""
        made = {signal: self._signal(signal, size) for signal in needs - {Signal.TOWER}}
        tower = None
        if Signal.TOWER in needs:
            keys = self._normal(size.images, 1 + size.patches, self._head_width)
            tower = FreeTower(self._hidden(size), keys, self.geometry.vision_layers - 1)
        texts, words = [1] * size.images, [WORDS] * size.images
        return Signals(
            size.images, size.patches, self.device, texts, made, tower, word_counts=words
        )

    def guidance(
        self, needs: frozenset[Signal], size: Size
    ) -> Callable[[], Mapping[Signal, Tensor]]:
        """What computes ``needs`` from random hidden states and text embeddings."""
        hidden, before = self._hidden(size), self._hidden(size)
        texts = [self._normal(1, self.geometry.projection) for _ in range(size.images)]
        states = self._normal(size.images, 1 + TEXT_TOKENS, self.geometry.projection)
        own = torch.ones(size.images, TEXT_TOKENS, dtype=torch.bool, device=self.device)
        words = self._normal(size.images, WORDS, self.geometry.llm_width)
        texts_of = [[image] for image in range(size.images)]

        def compute() -> Mapping[Signal, Tensor]:
            values = {Signal.FEATURES: hidden}
            values |= self._scorer.image_signals(hidden, before, needs)
            values |= self._scorer.text_signals(hidden, texts, needs)
            if Signal.TOKEN_COSINE in needs:
                aligned = self._scorer.aligned(hidden)
                values[Signal.TOKEN_COSINE] = token_cosines(
                    aligned, texts_of, lambda some: (states[some], own[some])
                )
            if needs & {Signal.PROJECTED, Signal.WORD_COSINE}:
                projected = self._projector(hidden[:, 1:]).float()
            if Signal.PROJECTED in needs:
                values[Signal.PROJECTED] = projected
            if Signal.WORD_COSINE in needs:
                values[Signal.WORD_COSINE] = cosine_score(projected, words)
            return values

        return compute

    def texts(self, size: Size) -> Callable[[], Tensor]:
        """What embeds one new text an image."""
        ids = torch.randint(
            self._text_tower.model.config.vocab_size,
            (size.images, TEXT_TOKENS),
            generator=self._random,
            device=self.device,
        )
        ids[:, -1] = self._text_tower.model.config.eos_token_id
        return lambda: self._text_tower(ids)

    def tower(self, size: Size) -> HfTower:
        """The tower on random images."""
        side = self.geometry.image_size
        pixels = self._normal(size.images, 3, side, side).to(self.dtype)
        tower = vision_model(self._tower)
        return HfTower(tower, pixels, len(tower.encoder.layers))

    def most_bytes(self, needs: frozenset[Signal], size: Size) -> int:
        """An upper estimate of the memory that a method's inputs and selection take.

        The signals, a copy of them in float32, and three matrices of patches by patches.
        """
        numbers = sum(math.prod(self._shape(signal, size)) for signal in needs)
        return 4 * (2 * numbers + 3 * size.images * size.patches**2)

    @property
    def _head_width(self) -> int:
        return self.geometry.vision_width // self.geometry.vision_heads

    def _shape(self, signal: Signal, size: Size) -> tuple[int, ...]:
        images, patches, width = size.images, size.patches, self.geometry.vision_width
        match signal:
            case Signal.FEATURES | Signal.TOWER:
                return images, 1 + patches, width
            case Signal.PROJECTED:
                return images, patches, self.geometry.llm_width
            case Signal.SIMILARITY | Signal.COSINE | Signal.TOKEN_COSINE | Signal.VALUE:
                return images, 1, patches
            case Signal.WORD_COSINE:
                return images, WORDS, patches
            case Signal.KEYS:
                return images, patches, self._head_width
            case Signal.LAST_KEYS:
                return images, patches, width
            case _:
                return images, patches

    def _signal(self, signal: Signal, size: Size) -> Tensor:
        if signal is Signal.FEATURES:
            return self._hidden(size)
        normal = self._normal(*self._shape(signal, size))
        if signal in _SMALL:
            return normal / 20
        return normal.softmax(dim=-1) if signal in _PROBABILITIES else normal

    def _hidden(self, size: Size) -> Tensor:
        shape = self._shape(Signal.FEATURES, size)
        return torch.randn(shape, generator=self._random, device=self.device, dtype=self.dtype)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random, device=self.device)

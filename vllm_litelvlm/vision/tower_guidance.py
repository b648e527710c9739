"""Vision tower, scorer and text tower together: from images and token ids to signals."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig

from vllm_litelvlm.pruning.base import EMBEDDING_SIGNALS, Signal, Signals, to_device
from vllm_litelvlm.pruning.batch import choose_bases
from vllm_litelvlm.pruning.order import Layer, Order
from vllm_litelvlm.vision.images import FROM_FEATURE_INPUT, Images, needs_features
from vllm_litelvlm.vision.scorer import Scorer, TextTower
from vllm_litelvlm.vision.slots import Row, Rows, SlotCache, recall
from vllm_litelvlm.vision.tokens import token_cosines, word_cosines

#: Texts embedded in one call: bounds the text tower's memory, whatever a step's requests name.
_AT_ONCE = 64
#: What stands behind a text's own tokens where they are counted.
_NO_TOKEN = -1
#: Image signals that are small enough to be kept beside the features.
_SMALL = FROM_FEATURE_INPUT | {Signal.CONTEXT, Signal.CONTEXT_NORMALISED, Signal.LAST_ATTENTION}


class TowerGuidance(ABC):
    """Computes what methods go by, for a batch of images and the texts of their requests.

    Equal images and equal texts of a batch are looked at once, and those of earlier batches not
    at all while they are in a cache; of single tokens of texts there is none. All memory is on
    torch's current device.

    Args:
        tower: configuration of the model's vision tower.
        scorer: of that kind of tower.
        text_tower: of the same kind.
    """

    #: The signals that there are.
    available: ClassVar[frozenset[Signal]]
    #: Whether [CLS] stands before the patches.
    has_cls: ClassVar[bool]

    def __init__(self, tower: PretrainedConfig, scorer: Scorer[Any], text_tower: TextTower) -> None:
        self.scorer, self.text_tower = scorer.eval(), text_tower.eval()
        self.feature_cache: SlotCache | None = None
        self.text_cache: SlotCache | None = None
        self.base_cache: SlotCache | None = None
        self._patches = patch_count(tower)
        self._width, self._heads = tower.hidden_size, tower.num_attention_heads

    @staticmethod
    @abstractmethod
    def own_ids(ids: Tensor) -> Tensor:
        """Of one text's row of ids, [length], what it has whatever texts are beside it."""

    def add_feature_cache(
        self, max_bytes: int, dtype: torch.dtype, signals: frozenset[Signal]
    ) -> None:
        """Keep features, in ``dtype``, and the small ones of ``signals``, in ``max_bytes``.

        A size in which not one image fits adds no cache.
        """
        shapes: dict[Signal, Row] = {
            Signal.FEATURES: ((self.has_cls + self._patches, self._width), dtype),
            Signal.KEYS: ((self._patches, self._width // self._heads), torch.float32),
        }
        kept = {Signal.FEATURES} | (signals & _SMALL)
        rows: dict[str, Row] = {
            name: shapes.get(name, ((self._patches,), torch.float32)) for name in sorted(kept)
        }
        slots = max_bytes // SlotCache.row_bytes(rows)
        self.feature_cache = SlotCache(slots, rows) if slots else None

    def add_text_cache(self, texts: int) -> None:
        """Keep the embeddings of so many texts; of none, add no cache."""
        row = ((self.scorer.text_width,), torch.float32)
        self.text_cache = SlotCache(texts, {"embedding": row}) if texts else None

    def add_base_cache(self, bases: int) -> None:
        """Remember the bases that were chosen last, one an image and method.

        A base must not change while vLLM has it in its prefix cache, or a focus could double or
        miss a patch: another batch, and with it another rounding, may rank two patches otherwise.
        """
        self.base_cache = SlotCache(bases, {"base": ((self._patches,), torch.bool)})

    def keeps_features(self, keys: Sequence[bytes]) -> bool:
        """Whether the features of all these images are in the cache."""
        cache = self.feature_cache
        return cache is not None and all(key in cache for key in keys)

    def forget(self) -> None:
        """Empty the caches, as new weights and vLLM's own resets demand."""
        for cache in (self.feature_cache, self.text_cache, self.base_cache):
            if cache is not None:
                cache.clear()

    @torch.no_grad()
    def signals(
        self,
        images: Images,
        text_ids: Sequence[Tensor],
        needs: frozenset[Signal],
        word_ids: Sequence[Tensor] = (),
    ) -> Signals:
        """Compute the needed signals of a batch of images.

        ``text_ids`` holds one integer [texts, length] tensor an image, on the CPU; for WORD_COSINE,
        ``word_ids`` one integer [words].
        """
        values: dict[Signal, Tensor] = {}
        if needs_features(needs):
            values, last = self._image_values(images, needs)
        if needs & EMBEDDING_SIGNALS:
            texts = self._embed(text_ids, images.device)
            values |= self.scorer.text_signals(values[Signal.FEATURES], texts, needs, last)
        if Signal.TOKEN_COSINE in needs:
            values[Signal.TOKEN_COSINE] = token_cosines(
                self.scorer.aligned(values[Signal.FEATURES]),
                [[tuple(self.own_ids(row).tolist()) for row in ids] for ids in text_ids],
                partial(self._tokens_of, device=images.device),
            )
        if needs & {Signal.PROJECTED, Signal.WORD_COSINE}:
            patches = values[Signal.FEATURES][:, -images.patches :]
            values[Signal.PROJECTED] = images.project(patches).float()
        if Signal.WORD_COSINE in needs:
            values[Signal.WORD_COSINE] = word_cosines(
                values[Signal.PROJECTED], word_ids, images.embed
            )
        return Signals(
            images=len(text_ids),
            patches=images.patches,
            device=images.device,
            text_counts=[len(ids) for ids in text_ids],
            values=values,
            tower=images.tower,
            word_counts=[len(ids) for ids in word_ids],
        )

    def bases(
        self, signals: Signals, keys: Sequence[bytes], orders: Sequence[Order]
    ) -> list[Tensor | None]:
        """The base of every image of which one layer is asked for, bool [patches].

        Args:
            signals: of the batch.
            keys: one an image, as :attr:`Images.keys`.
            orders: one an image.
        """
        layered = [image for image, order in enumerate(orders) if order.layer is not Layer.WHOLE]
        bases: list[Tensor | None] = [None] * len(orders)
        if not layered:
            return bases

        def compute(places: list[int]) -> Rows:
            images = [layered[place] for place in places]
            chosen = choose_bases(signals.rows(images), [orders[image] for image in images])
            return {"base": chosen}

        wanted = [(keys[image], *orders[image].base_key) for image in layered]
        found = recall(wanted, compute, self.base_cache)["base"]
        for image, base in zip(layered, found.unbind(), strict=True):
            bases[image] = base
        return bases

    def _image_values(
        self, images: Images, needs: frozenset[Signal]
    ) -> tuple[dict[Signal, Tensor], Any]:
        """Features, and the needed signals that depend on the images alone; and the last layer.

        What the cache does not keep is computed from features, but for the signals of hidden state
        -3: a batch that needs one of those runs the tower on every image where they are not kept.
        """
        cache, from_input = self.feature_cache, self.scorer.from_feature_input
        kept = frozenset(map(Signal, cache.names)) if cache is not None else frozenset()
        if not needs & from_input <= kept:
            cache, kept = None, frozenset()
        at_once = kept | (needs & from_input)
        ran: list[tuple[Tensor, Any]] = []

        def compute(places: list[int]) -> Rows:
            hidden, feature_input = images.run(places, bool(at_once & from_input))
            ran.append((hidden, self.scorer.last_layer(hidden)))
            scores = self.scorer.image_signals(hidden, feature_input, at_once, ran[0][1])
            return {Signal.FEATURES.value: hidden} | {
                name.value: row for name, row in scores.items()
            }

        rows = recall(images.keys, compute, cache)
        values = {Signal(name): row for name, row in rows.items()}
        hidden = values[Signal.FEATURES]
        # Where all images were new, what their signals had in common serves the texts too.
        last = ran[0][1] if ran and ran[0][0] is hidden else self.scorer.last_layer(hidden)
        rest = needs - values.keys()
        return values | self.scorer.image_signals(hidden, None, rest, last), last

    def _tokens_of(
        self, texts: list[tuple[int, ...]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Of texts by their ids, what :func:`token_cosines` asks for."""
        rows = [torch.tensor(text, dtype=torch.int32) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=_NO_TOKEN)
        own = to_device((ids >= 0).tolist(), device, torch.bool)
        return self._run_text_tower(rows, device, by_token=True), own

    def _embed(self, text_ids: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Each image's text embeddings, float32 [texts, text_width]."""
        texts = [row for ids in text_ids for row in map(self.own_ids, ids)]
        counts = [len(ids) for ids in text_ids]
        if not texts:
            return [torch.empty(0, self.scorer.text_width, device=device) for _ in counts]

        def compute(places: list[int]) -> Rows:
            return {"embedding": self._run_text_tower([texts[place] for place in places], device)}

        keys = [text.numpy().tobytes() for text in texts]
        return list(recall(keys, compute, self.text_cache)["embedding"].split(counts))

    def _run_text_tower(
        self, rows: Sequence[Tensor], device: torch.device, by_token: bool = False
    ) -> Tensor:
        """Embeddings of token ids of different lengths, float32 [rows, text_width].

        ``by_token``: those of every token instead, [rows, most tokens, width].
        """
        padded = pad_sequence(list(rows), batch_first=True, padding_value=int(rows[0][-1]))
        if device.type != "cpu":
            padded = padded.pin_memory()
        ids_on_device = padded.to(device, non_blocking=True)
        run = self.text_tower.tokens if by_token else self.text_tower
        return torch.cat([run(some) for some in ids_on_device.split(_AT_ONCE)])


def patch_count(tower: PretrainedConfig) -> int:
    """How many patches an image has, and with them LLaVA's visual tokens."""
    return int((tower.image_size // tower.patch_size) ** 2)

"""The part of a model class that prunes: from a step's images to the tokens that stay of them."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.platforms import current_platform

from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.family import Family
from vllm_litelvlm.plugin.inquiry import answer_inquiries
from vllm_litelvlm.plugin.kept import Kept, KeptTokens, Shape
from vllm_litelvlm.plugin.metrics import worker_metrics
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.plugin.processor import PARCELS
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.runners import follow_resets, mend_cpu_runner
from vllm_litelvlm.plugin.stopwatch import Section, Stopwatch
from vllm_litelvlm.plugin.trace import trace_selections
from vllm_litelvlm.pruning.base import Selection, Signal, Signals
from vllm_litelvlm.pruning.batch import needed_signals, prune
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.registry import pruner_for
from vllm_litelvlm.vision.pages import PageCache
from vllm_litelvlm.vision.slots import SlotCache

FeatureCache = SlotCache | PageCache


class Media(Protocol):
    """The images of a step, as the model gets them."""

    @property
    def tokens(self) -> Sequence[int]:
        """Visual tokens of each image, before pruning."""

    @property
    def shapes(self) -> Sequence[Shape | None]:
        """Frames, rows and columns of each image's tokens; None where they are no grid."""

    @property
    def load(self) -> Sequence[int]:
        """Visual tokens of each image as tower and guidance have them, cut off later or not."""

    @property
    def device(self) -> Any:
        """Where they are."""

    def some(self, images: slice) -> "Media":
        """A run of them."""


@dataclass(frozen=True)
class Group:
    """Pictures of a batch that have the same grid of tokens, and their signals.

    ``images`` numbers the item of each; the frames of a video are pictures of one item, in order.
    """

    images: Sequence[int]
    signals: Signals


@dataclass(frozen=True)
class Batch:
    """Images that go through tower, guidance and selection together; all fields one an image.

    ``names`` as :attr:`~vllm_litelvlm.plugin.parcel.Parcel.name`.
    """

    media: Media
    keys: Sequence[bytes]
    text_ids: Sequence[Tensor]
    word_ids: Sequence[Tensor]
    orders: Sequence[WorkOrder]
    names: Sequence[str]

    def parts(self, room: int) -> "Iterator[Batch]":
        """Runs of the images that load the tower with at most ``room`` tokens, or of one image."""
        start, taken = 0, 0
        for number, tokens in enumerate(self.media.load):
            if taken and taken + tokens > room:
                yield self._some(slice(start, number))
                start, taken = number, 0
            taken += tokens
        yield self._some(slice(start, len(self.orders)))

    def _some(self, images: slice) -> "Batch":
        return Batch(
            self.media.some(images),
            self.keys[images],
            self.text_ids[images],
            self.word_ids[images],
            self.orders[images],
            self.names[images],
        )


class PrunedModel(ABC):
    """Mixed into a model class before vLLM's own, whose ``embed_multimodal`` this is.

    A family says how its images run through its tower, and what is known of them then.
    """

    #: Whose front end this model has.
    litelvlm_family: ClassVar[Family]
    # Of vLLM's classes.
    config: Any
    language_model: Any

    @abstractmethod
    def litelvlm_media(self, fields: dict[str, Any]) -> Media:
        """The images of a step, from vLLM's fields."""

    @abstractmethod
    def litelvlm_whole(self, fields: dict[str, Any]) -> MultiModalEmbeddings:
        """All tokens of every image, exactly as stock vLLM computes them."""

    @abstractmethod
    def litelvlm_groups(
        self, batch: Batch, needs: frozenset[Signal], section: Section
    ) -> Sequence[Group]:
        """The needed signals; what the tower takes for them is no part of ``section``."""

    @abstractmethod
    def litelvlm_tokens(self, selections: Sequence[Selection]) -> Sequence[Tensor]:
        """Selected tokens, as the language model gets them."""

    @abstractmethod
    def litelvlm_placed(
        self,
        embeddings: Sequence[Tensor] | Tensor,
        batch: Batch,
        selections: Sequence[Selection] | None,
    ) -> Sequence[Tensor]:
        """Tokens with what tells their positions; without ``selections`` all images are whole."""

    def litelvlm_keeps(self, keys: Sequence[bytes]) -> bool:
        """Whether the features of all these images are in a cache."""
        return False

    def litelvlm_bases(
        self, signals: Signals, keys: Sequence[bytes], orders: Sequence[WorkOrder]
    ) -> Sequence[Tensor | None]:
        """The base of every image of which one layer is asked for, bool [patches]."""
        return [None] * len(orders)

    @abstractmethod
    def litelvlm_caches(self) -> tuple[FeatureCache | None, SlotCache | None]:
        """Those of images' features and of texts' embeddings."""

    @abstractmethod
    def litelvlm_forget(self) -> None:
        """Empty the caches, as vLLM does its own where weights may have changed."""

    def litelvlm_begin(self, vllm_config: VllmConfig) -> None:
        """Called at the end of the model's ``__init__``."""
        self._settings = guidance_config(vllm_config.model_config.hf_config)
        self._stopwatch = Stopwatch()
        self._kept = KeptTokens()
        #: Unpruned tokens that go through tower and guidance together (:attr:`Media.load`). vLLM's
        #: scheduler counts what is kept of them, so a step may have more than the memory profile
        #: saw, which sets this.
        self._at_once: int = vllm_config.scheduler_config.max_num_encoder_input_tokens
        if self._settings.server.original_positions and current_platform.is_cpu():
            mend_cpu_runner()
        follow_resets(v2=vllm_config.use_v2_model_runner)
        answer_inquiries()

    def litelvlm_embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, [tokens] to [tokens, width], without any adapter.

        What vLLM puts around the layer for LoRA takes a step's own tokens alone. Zeros on a stage
        of a pipeline that has no such layer: vLLM's memory profile comes there too.
        """
        if not get_pp_group().is_first_rank:
            return torch.zeros(len(ids), self.config.text_config.hidden_size, device=ids.device)
        embed = self._word_layer or self.language_model.embed_input_ids
        embedded: Tensor = embed(ids)
        return embedded

    @cached_property
    def _word_layer(self) -> Any:
        """The language model's input embeddings, whatever is around them; None of another kind."""
        layers = self.language_model.modules()
        return next((one for one in layers if type(one) is VocabParallelEmbedding), None)

    def litelvlm_needs(self) -> frozenset[Signal]:
        """What the server's own options and its variants ask of an image."""
        traits = self.litelvlm_family.traits(self.config)
        sets = self._settings.server.sets.values()
        return frozenset().union(*(pruner_for(options, traits).needs for options in sets))

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Kept tokens of every image of the step, one [kept, width] tensor an image."""
        sent = [one for field in PARCELS.values() for one in kwargs.pop(field, ())]
        parcels = [Parcel.unpack(one) for one in sent]
        if not parcels:
            return []
        batch = Batch(
            self.litelvlm_media(kwargs),
            [parcel.key for parcel in parcels],
            [parcel.text_ids for parcel in parcels],
            [parcel.word_ids for parcel in parcels],
            [parcel.order for parcel in parcels],
            [parcel.name for parcel in parcels],
        )
        orders = batch.orders
        whole = all(isinstance(one.pruner, KeepAll) and one.window is None for one in orders)
        if whole and not self.litelvlm_keeps(batch.keys):
            # Stock vLLM, bit for bit.
            self._note(batch, None)
            return self._finished(self.litelvlm_whole(kwargs), batch)
        if any(isinstance(order.pruner, Profile) for order in orders):
            return self._profile(batch)
        embeddings: list[Tensor] = []
        for part in batch.parts(self._at_once):
            selections = self.litelvlm_select(part)
            self._note(part, selections)
            embeddings += self._finished(self.litelvlm_tokens(selections), part, selections)
        return embeddings

    def _finished(
        self,
        embeddings: Any,
        batch: Batch,
        selections: Sequence[Selection] | None = None,
    ) -> Any:
        """Tokens as the runner takes them: with their places, where it asks for those."""
        if not self._settings.server.original_positions:
            return embeddings
        return self.litelvlm_placed(embeddings, batch, selections)

    def litelvlm_kept(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """What was kept of the items that vLLM caches under these names.

        As :meth:`~vllm_litelvlm.plugin.kept.KeptTokens.told`; an inquiry of the API server.
        """
        return self._kept.told(names)

    def _note(self, batch: Batch, selections: Sequence[Selection] | None) -> None:
        """Remember what is kept, and write it down; once, of all the ranks that select the same.

        Without ``selections`` that is everything.
        """
        if get_tensor_model_parallel_rank() != 0:
            return
        media = batch.media
        for number, name in enumerate(batch.names):
            one = None if selections is None else selections[number]
            kept = Kept(
                batch.orders[number],
                batch.keys[number],
                media.tokens[number],
                media.shapes[number],
                None if one is None else one.indices,
                None if one is None else one.guided,
            )
            self._kept.remember(name, kept)
        trace_selections(batch.orders, batch.text_ids, selections, media.tokens)

    def _profile(self, batch: Batch) -> MultiModalEmbeddings:
        """Run vLLM's memory profile, whose images are one and the same, as if they were not."""
        self._at_once = sum(batch.media.load)
        keys = [number.to_bytes(4, "little") for number in range(len(batch.keys))]
        batch = replace(batch, keys=keys)
        selections = self.litelvlm_select(batch)
        embeddings = self._finished(self.litelvlm_tokens(selections), batch, selections)
        self.litelvlm_forget()
        return embeddings

    def litelvlm_select(self, batch: Batch) -> list[Selection]:
        """What stays of each image, by the batch's orders."""
        metrics = worker_metrics() if get_tensor_model_parallel_rank() == 0 else None
        guidance_seconds = metrics.guidance_seconds if metrics is not None else None
        selection_seconds = metrics.selection_seconds if metrics is not None else None
        device = batch.media.device
        with self._stopwatch.time(guidance_seconds, device) as section:
            groups = self.litelvlm_groups(batch, needed_signals(batch.orders), section)
        if metrics is not None:
            metrics.show_caches(*self.litelvlm_caches())
        chosen = defaultdict[int, list[Selection]](list)
        with self._stopwatch.time(selection_seconds, device):
            for group in groups:
                orders = [batch.orders[image] for image in group.images]
                keys = [batch.keys[image] for image in group.images]
                bases = self.litelvlm_bases(group.signals, keys, orders)
                selections = prune(group.signals, orders, bases)
                for image, selection in zip(group.images, selections, strict=True):
                    chosen[image].append(selection)
        return [_joined(chosen[image]) for image in range(len(batch.orders))]


def _joined(pictures: Sequence[Selection]) -> Selection:
    """The tokens of an item's pictures, one behind the other."""
    if len(pictures) == 1:
        return pictures[0]
    return Selection(
        torch.cat([one.tokens for one in pictures]),
        torch.cat([one.indices for one in pictures]),
        torch.cat([one.guided for one in pictures]),
    )

"""Training on the tokens that a server would keep: conversations never see the others."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.export import clip_tensors
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.ranks import scorer_of
from vllm_litelvlm.demo.training.settings import Pruning
from vllm_litelvlm.demo.training.tensors import Rounds
from vllm_litelvlm.options import ServerOptions, parse_request_options
from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Pruner, Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import settle
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.clip import LAST_LAYER, ClipScorer

#: Of what is computed of the hidden state that training has anyway.
_TRAITS = Traits("Trained", LAST_LAYER | TEXT_SIGNALS | {Signal.FEATURES})


@dataclass(frozen=True)
class Keeper:
    """Keeps ``budget`` tokens of an image for each conversation, guided by its expressions.

    They stand at their original positions.
    """

    clip: Clip
    scorer: ClipScorer
    pruner: Pruner
    budget: int

    @classmethod
    def of(cls, clip: Clip, config: CLIPVisionConfig, pruning: Pruning) -> "Keeper":
        """With a CLIP as it is now. Raises OptionsError for what there is not to prune by."""
        options = parse_request_options(vars(pruning), ServerOptions())
        patches = (config.image_size // config.patch_size) ** 2
        pruner, budget = settle(options, patches, traits=_TRAITS)
        return cls(clip, scorer_of(config, clip_tensors(clip)), pruner, budget)

    @torch.no_grad()
    def keep(self, hidden: Tensor, guides: Tensor, ends: Tensor) -> Selection:
        """What is kept of images for each conversation, those of an image one after the other.

        Args:
            hidden: hidden state -2, [images, 1 + patches, width].
            guides: int64 [images, conversations, texts, length].
            ends: int64 [images, conversations, texts]: where each text's end token is.
        """
        images, count, texts = ends.shape
        embedded = self.clip.text(guides.flatten(0, 2), ends.flatten()).float()
        by_image = list(embedded.view(images, count * texts, -1))
        needs, last = self.pruner.needs, self.scorer.last_layer(hidden)
        of_images = self.scorer.image_signals(hidden, None, needs, last)
        of_texts = self.scorer.text_signals(hidden, by_image, needs, last)
        values = {
            name: value.repeat_interleave(count, dim=0)
            for name, value in {**of_images, Signal.FEATURES: hidden}.items()
        }
        values |= {
            name: value.reshape(-1, texts, *value.shape[2:]) for name, value in of_texts.items()
        }
        signals = Signals(
            images=images * count,
            patches=hidden.shape[1] - 1,
            device=hidden.device,
            text_counts=[texts] * images * count,
            values=values,
        )
        return self.pruner.select(signals, self.budget)

    def answer(self, llava: Llava, hidden: Tensor, prefix: Tensor, rounds: Rounds) -> Tensor:
        """As :meth:`Llava.answer`, each conversation seeing what is kept for it."""
        images, count, length = rounds.tokens.shape
        kept = self.keep(hidden, rounds.guides, rounds.ends)
        places = self.pruner.places(hidden.shape[1] - 1)
        memory = llava.read(kept.tokens, prefix, kept.indices - places.start, len(places))
        said = llava.answer(memory, rounds.tokens.view(-1, 1, length))
        return said.view(images, count, length, -1)

"""Scorer, text tower and methods together: from hidden states to kept tokens."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPConfig, CLIPVisionConfig

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, to_device
from vllm_litelvlm.vision.clip import ClipScorer
from vllm_litelvlm.vision.text import ClipTextTower

#: Texts embedded in one call: bounds the text tower's memory, whatever a step's requests name.
_AT_ONCE = 64


class Guidance(nn.Module):
    """Decides which patch tokens of a batch of images stay.

    Args:
        tower: configuration of the model's vision tower.
        clip: configuration of the CLIP checkpoint that it was taken from.
    """

    def __init__(self, tower: CLIPVisionConfig, clip: CLIPConfig) -> None:
        super().__init__()
        self.scorer = ClipScorer(tower, clip.projection_dim)
        self.text_tower = ClipTextTower(clip.text_config)

    @staticmethod
    def needs(pruners: Sequence[Pruner]) -> frozenset[Signal]:
        """The signals that a batch's methods read, together."""
        return frozenset().union(*(pruner.needs for pruner in pruners))

    def signals(
        self,
        hidden: Tensor,
        feature_input: Tensor | None,
        text_ids: Sequence[Tensor],
        needs: frozenset[Signal],
    ) -> Signals:
        """Embed the texts and score the patches; see :meth:`ClipScorer.signals`.

        ``text_ids`` holds one integer [texts, length] tensor an image, on the CPU.
        """
        if Signal.SIMILARITY in needs:
            texts = self._embed(text_ids, hidden.device)
        else:  # only how many there are
            texts = [hidden.new_empty(len(ids), 0) for ids in text_ids]
        return self.scorer.signals(hidden, feature_input, texts, needs)

    @staticmethod
    def select(
        signals: Signals, pruners: Sequence[Pruner], budgets: Sequence[int]
    ) -> list[Selection]:
        """One selection an image; images that ask for the same method are selected together."""
        groups: dict[Pruner, list[int]] = defaultdict(list)
        for image, pruner in enumerate(pruners):
            groups[pruner].append(image)
        chosen: dict[int, Selection] = {}
        for pruner, images in groups.items():
            selections = pruner.select(signals.rows(images), [budgets[image] for image in images])
            chosen.update(zip(images, selections, strict=True))
        return [chosen[image] for image in range(len(pruners))]

    def _embed(self, text_ids: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Each image's text embeddings, float32 [texts, width]; equal texts are embedded once."""
        places: dict[bytes, int] = {}
        unique: list[Tensor] = []
        picks: list[list[int]] = []
        for ids in text_ids:
            picked = []
            for row in ids:
                end = int((row == row[-1]).nonzero()[0]) + 1  # padding repeats the end token
                key = row[:end].numpy().tobytes()
                if key not in places:
                    places[key] = len(unique)
                    unique.append(row[:end])
                picked.append(places[key])
            picks.append(picked)
        embeddings = self._embed_unique(unique, device)
        return [embeddings.index_select(0, to_device(picked, device)) for picked in picks]

    def _embed_unique(self, rows: Sequence[Tensor], device: torch.device) -> Tensor:
        """Embeddings of token ids of different lengths, float32 [rows, width]."""
        weight = self.scorer.projection.weight
        if not rows:
            return weight.new_empty(0, len(weight))
        padded = pad_sequence(list(rows), batch_first=True, padding_value=int(rows[0][-1]))
        if device.type != "cpu":
            padded = padded.pin_memory()
        ids_on_device = padded.to(device, non_blocking=True)
        return torch.cat([self.text_tower(some) for some in ids_on_device.split(_AT_ONCE)])

"""Scorer and text tower together: from hidden states and token ids to signals."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPConfig, CLIPVisionConfig

from vllm_litelvlm.pruning.base import Signal, Signals, to_device
from vllm_litelvlm.vision.clip import ClipScorer
from vllm_litelvlm.vision.seen import Seen
from vllm_litelvlm.vision.text import ClipTextTower

#: Texts embedded in one call: bounds the text tower's memory, whatever a step's requests name.
_AT_ONCE = 64


class Guidance(nn.Module):
    """Computes what methods go by, for a batch of images and the texts of their requests.

    Args:
        tower: configuration of the model's vision tower.
        clip: configuration of the CLIP checkpoint that it was taken from.
    """

    def __init__(self, tower: CLIPVisionConfig, clip: CLIPConfig) -> None:
        super().__init__()
        self.scorer = ClipScorer(tower, clip.projection_dim)
        self.text_tower = ClipTextTower(clip.text_config)

    def signals(self, seen: Seen, text_ids: Sequence[Tensor], needs: frozenset[Signal]) -> Signals:
        """Embed the texts and score the patches; see :meth:`ClipScorer.signals`.

        ``text_ids`` holds one integer [texts, length] tensor an image, on the CPU.
        """
        if needs & {Signal.SIMILARITY, Signal.COSINE}:
            texts = self._embed(text_ids, seen.device)
        else:  # only how many there are
            nothing = torch.empty(0, device=seen.device)
            texts = [nothing.new_empty(len(ids), 0) for ids in text_ids]
        return self.scorer.signals(seen, texts, needs)

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

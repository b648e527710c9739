"""Validation figures of either model in training, on scenes and wordings it has not seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import CLIPVisionConfig

from vllm_litelvlm.demo.training.answering import answer_figures, features_of, judge
from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.dense import DenseHeads, dense_figures
from vllm_litelvlm.demo.training.export import clip_tensors
from vllm_litelvlm.demo.training.keeper import Keeper
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.mask_batches import MaskBatchMaker
from vllm_litelvlm.demo.training.mask_validation import boxed, mask_figures, meant
from vllm_litelvlm.demo.training.pointing import Pointer
from vllm_litelvlm.demo.training.ranks import rank_figures, refer_to_each, scorer_of
from vllm_litelvlm.demo.training.tensors import SomeBatch, on_device

#: Pictures of a validation, by the side of the canvas: fewer of those that take long.
_IMAGES = {5: 512, 8: 512, 12: 256, 24: 96}
_RANKED = 96
_ASKED = 64


@dataclass(frozen=True)
class Validator:
    """Validates on a stage's kind of pictures.

    ``maker`` makes the stage's training batches; ``thoroughness``: the share of all pictures.
    """

    maker: BatchMaker
    device: torch.device
    thoroughness: float = 1.0

    def clip(self, clip: Clip, heads: DenseHeads) -> dict[str, float]:
        """Retrieval among a batch, and what the linear heads read."""
        maker = self._maker(self.maker.stage.batch)
        rows = []
        for step in self._steps(_IMAGES.get(self.maker.stage.canvas, 96)):
            batch = on_device(maker.clip(step), self.device)
            with torch.no_grad():
                features = clip.vision.features(batch.pictures.patches, batch.pictures.places)
                logits = clip.logits(
                    clip.vision.embed(features), clip.text(batch.tokens, batch.ends)
                )
                told = heads(features[:, 1:])
            figures = dense_figures(told, batch.attributes, batch.sides, batch.weights)
            figures = {f"dense.{name}": value for name, value in figures.items()}
            halves = zip(logits.chunk(2, dim=1), batch.true.chunk(2, dim=1), strict=True)
            for name, (half, true) in zip(("expressions", "captions"), halves, strict=True):
                best = half.argmax(dim=1, keepdim=True)
                figures[f"top1.{name}"] = float(true.gather(1, best).float().mean())
                figures[f"top1.{name}.guess"] = float(true.float().mean())
            rows.append(figures)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def ranks(self, clip: Clip, config: CLIPVisionConfig) -> dict[str, float]:
        """See :func:`~vllm_litelvlm.demo.training.ranks.rank_figures`."""
        maker = self._maker(max(8, int(_RANKED * self.thoroughness)))
        referred = refer_to_each(maker.scenes(0))
        pictures = maker.pictures([one.scene for one in referred], maker.offsets(0))
        tokens, ends = maker.read([one.expression.text for one in referred])
        with torch.no_grad():
            patches, places = pictures.patches.to(self.device), pictures.places.to(self.device)
            hidden = clip.vision.features(patches, places)
            texts = clip.text(tokens.to(self.device), ends.to(self.device)).float()
        scorer = scorer_of(config, clip_tensors(clip))
        return rank_figures(scorer, hidden, texts, referred, maker.patch)

    def llava(self, clip: Clip, llava: Llava) -> dict[str, float]:
        """Right answers by kind of question, beside guesses."""
        maker = self._maker(self.maker.stage.batch)
        judged = []
        for step in self._steps(_ASKED):
            features = features_of(clip.vision, maker, step, self.device)
            judged += judge(llava, features, maker, step, self.device)
        return answer_figures(judged)

    def sam(self, pointer: Pointer) -> dict[str, float]:
        """Masks of objects whose boxes are known."""
        maker = MaskBatchMaker(self._maker(self.maker.stage.batch))
        return mask_figures(pointer, boxed(pointer, self._batches(maker.sam)))

    def masks(
        self, clip: Clip, llava: Llava, pointer: Pointer, keeper: Keeper | None
    ) -> dict[str, float]:
        """Masks of what expressions mean, each a round of a conversation."""
        maker = MaskBatchMaker(self._maker(self.maker.stage.batch))
        batches = self._batches(maker.masks)
        return mask_figures(pointer, meant(clip, llava, pointer, batches, keeper))

    def _batches(self, make: Callable[[int], SomeBatch]) -> Iterator[SomeBatch]:
        return (on_device(make(step), self.device) for step in self._steps(_ASKED))

    def _steps(self, images: int) -> range:
        return range(max(1, int(images * self.thoroughness) // self.maker.stage.batch))

    def _maker(self, batch: int) -> BatchMaker:
        stage = replace(self.maker.stage, batch=batch, reuse=1)
        return replace(self.maker, stage=stage, seed=0, split="val", share=(0, 1))

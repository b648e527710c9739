"""Batches about masks: objects with their masks, and conversations that point at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_up
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vllm_litelvlm.demo.training.batches import BatchMaker, padded
from vllm_litelvlm.demo.training.captions import caption
from vllm_litelvlm.demo.training.language import Pointed
from vllm_litelvlm.demo.training.tensors import MaskBatch, Rounds, Segments
from vllm_litelvlm.evaluation.scenes.dataset import scene_seed
from vllm_litelvlm.evaluation.scenes.expressions import refer
from vllm_litelvlm.evaluation.scenes.scene import Scene

#: Objects of a picture that a SAM learns by in a step.
_OBJECTS = 8
#: How many expressions the conversations about a picture have.
_ROUNDS = (1, 1, 1, 2, 3, 4)
#: How often an expression loses its article, as those of RefCOCO have none.
_BARE = 0.5
_ARTICLE = "the "
#: How many objects are tried for each expression, before any caption of one will do.
_PATIENCE = 10


@dataclass(frozen=True)
class MaskBatchMaker:
    """As :class:`BatchMaker`, for the stages of models that answer with masks."""

    maker: BatchMaker

    def __call__(self, step: int) -> Segments | MaskBatch:
        """The batch of a step."""
        return self.sam(step) if self.maker.stage.model == "sam" else self.masks(step)

    def sam(self, step: int) -> Segments:
        """Pictures with objects at random."""
        maker, random = self.maker, self._random(step)
        first = maker.first(step)
        options = maker.stage.scenes(maker.patch)
        scenes = [
            Scene.make(scene_seed(maker.split, number), options)
            for number in range(first, first + maker.images)
        ]
        targets = [random.integers(0, len(one.objects), _OBJECTS).tolist() for one in scenes]
        return self._segments(scenes, targets, [(0, 0)] * len(scenes))

    def masks(self, step: int) -> MaskBatch:
        """Questions about pictures, and conversations."""
        random = self._random(step)
        samples = self.maker.samples(step)
        words = self.maker.about(step, samples)
        scenes = [about[0].scene for about in samples]
        asked = [self.expressions(scene, sum(_ROUNDS), random) for scene in scenes]
        rows = [self._conversations([text for text, _ in of_one]) for of_one in asked]
        groups = [
            _rounds([row[start:end] for row in rows])
            for start, end in pairwise([*_starts(_ROUNDS), len(_ROUNDS)])
        ]
        targets = [[target for _, target in of_one] for of_one in asked]
        meant = self._segments(scenes, targets, self.maker.offsets(step))
        return MaskBatch(words, tuple(groups), meant)

    def expressions(
        self, scene: Scene, count: int, random: np.random.Generator
    ) -> list[tuple[str, int]]:
        """Expressions, and the object that each one means."""
        found: list[tuple[str, int]] = []
        for tried in count_up():
            if len(found) == count:
                break
            target = scene.objects[int(random.integers(len(scene.objects)))]
            kinds = self.maker.stage.expressions
            expression = refer(target, scene.objects, self.maker.split, random, kinds)
            if expression is None and tried < _PATIENCE * count:
                continue
            text = expression.text if expression else caption([target], random).text
            bare = random.random() < _BARE
            found.append((text.removeprefix(_ARTICLE) if bare else text, target.index))
        return found

    def _segments(
        self,
        scenes: Sequence[Scene],
        targets: Sequence[Sequence[int]],
        offsets: Sequence[tuple[int, int]],
    ) -> Segments:
        """The same number of objects of each picture, which lies somewhere in the image."""
        side = self.maker.grid * self.maker.patch
        boxes = [
            [self.maker.shifted(scene.objects[index].box, offset) for index in of_one]
            for scene, of_one, offset in zip(scenes, targets, offsets, strict=True)
        ]
        return Segments(
            pixels=torch.from_numpy(np.stack([one.pixels for one in scenes])),
            owners=torch.from_numpy(np.stack([one.owners for one in scenes])),
            targets=torch.tensor([list(of_one) for of_one in targets]),
            boxes=torch.tensor(boxes) / side,
        )

    def _conversations(self, expressions: Sequence[str]) -> list[Pointed]:
        bounds = np.cumsum([0, *_ROUNDS]).tolist()
        parts = [expressions[start:end] for start, end in pairwise(bounds)]
        return [self.maker.tokenizers.pointing(part) for part in parts]

    def _random(self, step: int) -> np.random.Generator:
        maker = self.maker
        keys = [maker.seed, maker.number, step, maker.share[0], 1]
        return np.random.Generator(np.random.PCG64(keys))


def masks_of(segments: Segments) -> Tensor:
    """The masks of what is meant, bool [images, objects, side, side]."""
    return segments.owners[:, None] == segments.targets[..., None, None]


def _starts(rounds: Sequence[int]) -> list[int]:
    """Where conversations of another length begin."""
    return [place for place, count in enumerate(rounds) if rounds.index(count) == place]


def _rounds(rows: Sequence[Sequence[Pointed]]) -> Rounds:
    longest = max(len(one.tokens) for row in rows for one in row)
    shape = len(rows), len(rows[0]), longest
    tokens = torch.zeros(shape, dtype=torch.long)
    learned: list[int] = []
    targets: list[int] = []
    pointing: list[list[int]] = []
    for image, row in enumerate(rows):
        pointing.append([])
        for place, one in enumerate(row):
            tokens[image, place, : len(one.tokens)] = torch.tensor(one.tokens)
            begin = (image * len(row) + place) * longest
            learned += [begin + number - 1 for number in one.answers]
            targets += [one.tokens[number] for number in one.answers]
            pointing[-1] += [place * longest + number - 1 for number in one.points]
    guides, ends = padded([ids for row in rows for one in row for ids in one.guides])
    by_text = len(rows), len(rows[0]), len(rows[0][0].guides)
    return Rounds(
        tokens,
        torch.tensor(learned),
        torch.tensor(targets),
        torch.tensor(pointing),
        guides.view(*by_text, -1),
        ends.view(by_text),
    )

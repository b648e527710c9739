"""Batches of pictures with texts or questions, rendered anew for every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_litelvlm.demo.training.captions import caption, expression, truths
from vllm_litelvlm.demo.training.dense import dense_targets
from vllm_litelvlm.demo.training.language import Tokenizers
from vllm_litelvlm.demo.training.schedule import Stage
from vllm_litelvlm.demo.training.tensors import ClipBatch, LlavaBatch, Pictures, Questions
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.samples import Box
from vllm_litelvlm.evaluation.scenes.answers import write_box
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset, SceneSample, scene_seed
from vllm_litelvlm.evaluation.scenes.scene import Scene, SceneOptions

#: How often the start token comes first, which vLLM leaves out and other callers do not.
_WITH_START = 0.125
#: The scenes' numbers of one stage, seed and process begin this far after those of the one before.
_SEED_NUMBERS, _STAGE_NUMBERS, _SHARE_NUMBERS = 2**40, 2**34, 2**28


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step of a stage, the same every time.

    ``split`` is the scenes'. ``share``: the number of a process and how many there are, where each
    makes a part of every batch.
    """

    stage: Stage
    number: int
    seed: int
    patch: int
    grid: int
    tokenizers: Tokenizers
    split: Literal["train", "val"] = "train"
    share: tuple[int, int] = (0, 1)

    @property
    def images(self) -> int:
        """How many images a batch has, or this process's part of it."""
        return self.stage.batch // self.share[1]

    def __call__(self, step: int) -> ClipBatch | LlavaBatch:
        """The batch of a step."""
        return self.clip(step) if self.stage.model == "clip" else self.llava(step)

    def clip(self, step: int) -> ClipBatch:
        """Pictures and texts."""
        random = self._random(step)
        drawn = self._drawn(step)
        scenes = [one.scene for one in drawn]
        texts = [expression(one.objects, random, self.stage.expressions) for one in scenes]
        texts += [caption(one.objects, random) for one in scenes]
        offsets = self._offsets(random)
        dense = zip(*(one.dense for one in drawn), strict=True)
        tokens, ends = self.read([one.text for one in texts])
        return ClipBatch(
            self._placed([one.patches for one in drawn], offsets),
            tokens,
            ends,
            torch.from_numpy(truths(texts, [one.objects for one in scenes])),
            *(torch.from_numpy(np.stack(rows)) for rows in dense),
        )

    def llava(self, step: int) -> LlavaBatch:
        """Pictures and questions with their answers."""
        return self.about(step, self.samples(step))

    def about(self, step: int, samples: Sequence[Sequence[SceneSample]]) -> LlavaBatch:
        """The same of a step's own :meth:`samples`, which take long to draw."""
        random = self._random(step)
        offsets = self._offsets(random)
        rows: list[list[tuple[list[int], list[int]]]] = []
        for about, offset in zip(samples, offsets, strict=True):
            answers = [self.answer(one, offset) for one in about]
            pairs = self.tokenizers.questions([one.prompt for one in about], answers)
            rows.append(sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1])))
        prefix = self.tokenizers.prefix(start=random.random() < _WITH_START)
        bounds = np.linspace(0, self.stage.questions, self.stage.groups + 1).astype(int)
        groups = [
            _questions([row[start:end] for row in rows])
            for start, end in pairwise(bounds)
            if end > start
        ]
        pictures = self.pictures([about[0].scene for about in samples], offsets)
        return LlavaBatch(pictures, torch.tensor(prefix), tuple(groups))

    def scenes(self, step: int) -> list[Scene]:
        """The scenes of a CLIP's step."""
        return [one.scene for one in self._drawn(step)]

    def _drawn(self, step: int) -> "list[_Drawn]":
        """As many new pictures as there are of each of the last steps, which come again.

        Each time with other texts and at another place in the image.
        """
        new = max(1, self.images // self.stage.reuse)
        first = self.first(0) + step * new
        options = self.stage.scenes(self.patch)
        return [
            _draw(scene_seed(self.split, number), options, self.patch)
            for number in range(first, first + self.images)
        ]

    def samples(self, step: int) -> list[list[SceneSample]]:
        """As many questions as the stage wants about each scene of a LLaVA's step.

        Of a scene with fewer questions some come again.
        """
        first = self.first(step)
        dataset = SceneDataset(
            self.split,
            1,
            questions=self.stage.questions,
            expression_kinds=self.stage.expressions,
            scenes=self.stage.scenes(self.patch),
        )
        found = []
        for number in range(first, first + self.images):
            samples = dataset.about(number)
            if not samples:
                raise OptionsError(f"scene {number} of stage {self.stage.name!r} has no question")
            again = -(-self.stage.questions // len(samples))
            found.append((samples * again)[: self.stage.questions])
        return found

    def answer(self, sample: SceneSample, offset: tuple[int, int]) -> str:
        """The right answer, where the picture lies at ``offset`` (row, column) in the image."""
        if sample.answer is not None:
            return sample.answer
        assert sample.box is not None
        side = self.grid * self.patch
        return write_box(self.shifted(sample.box, offset), side, side)

    def shifted(self, box: Box, offset: tuple[int, int]) -> Box:
        """A box of the picture as a box of the image."""
        down, right = offset[0] * self.patch, offset[1] * self.patch
        return box[0] + right, box[1] + down, box[2] + right, box[3] + down

    def offsets(self, step: int) -> list[tuple[int, int]]:
        """Where the pictures of a LLaVA's step lie."""
        return self._offsets(self._random(step))

    def _offsets(self, random: np.random.Generator) -> list[tuple[int, int]]:
        last = self.grid - self.stage.canvas
        places = random.integers(0, last + 1, (self.images, 2)).tolist()
        return [(row, column) for row, column in places]

    def first(self, step: int) -> int:
        """The number of the first scene of a step."""
        start = self.number * _STAGE_NUMBERS + self.seed * _SEED_NUMBERS
        return start + self.share[0] * _SHARE_NUMBERS + step * self.images

    def _random(self, step: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, self.number, step, self.share[0]]))

    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts as the text tower's input: tokens, and where each one ends."""
        return padded(self.tokenizers.texts(texts))

    def pictures(self, scenes: Sequence[Scene], offsets: Sequence[tuple[int, int]]) -> Pictures:
        """Scenes at their places in the image; there may be more offsets than scenes."""
        patches = [patchwork(one.pixels, self.patch) for one in scenes]
        return self._placed(patches, offsets[: len(scenes)])

    def _placed(
        self, patches: Sequence[NDArray[np.uint8]], offsets: Sequence[tuple[int, int]]
    ) -> Pictures:
        grid = np.arange(self.stage.canvas)
        places = [
            ((row + grid[:, None]) * self.grid + column + grid[None]).reshape(-1)
            for row, column in offsets
        ]
        return Pictures(torch.from_numpy(np.stack(patches)), torch.from_numpy(np.stack(places)))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A scene with all that does not depend on its place and texts."""

    scene: Scene
    patches: NDArray[np.uint8]
    dense: tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]


@lru_cache(maxsize=256)
def _draw(seed: int, options: SceneOptions, patch: int) -> _Drawn:
    scene = Scene.make(seed, options)
    return _Drawn(scene, patchwork(scene.pixels, patch), dense_targets(scene, patch))


def patchwork(pixels: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """A picture [side, side, 3] as rows of patches, each channel by channel."""
    count = pixels.shape[0] // patch
    tiles = pixels.reshape(count, patch, count, patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles).reshape(count * count, -1)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Texts as the text tower's input: int64 [texts, length], and where each ends."""
    longest = max(map(len, rows))
    tokens = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
    return torch.tensor(tokens), torch.tensor([len(row) - 1 for row in rows])


def _questions(rows: Sequence[Sequence[tuple[list[int], list[int]]]]) -> Questions:
    longest = max(len(asked) + len(answer) - 1 for row in rows for asked, answer in row)
    tokens = torch.zeros((len(rows) * len(rows[0]), longest), dtype=torch.long)
    learned: list[int] = []
    targets: list[int] = []
    pairs = (pair for row in rows for pair in row)
    for number, (asked, answer) in enumerate(pairs):
        whole = [*asked, *answer[:-1]]
        tokens[number, : len(whole)] = torch.tensor(whole)
        begin = number * longest + len(asked) - 1
        learned += range(begin, begin + len(answer))
        targets += answer
    shape = (len(rows), len(rows[0]), longest)
    return Questions(tokens.view(shape), torch.tensor(learned), torch.tensor(targets))

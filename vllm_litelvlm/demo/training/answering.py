"""Greedy answers of the LLaVA in training, and how many are right beside what guessing gives."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.clip import VisionTower
from vllm_litelvlm.demo.training.llava import Llava, Memory
from vllm_litelvlm.demo.training.tensors import on_device
from vllm_litelvlm.evaluation.scenes.answers import (
    LEAST_IOU,
    iou,
    is_right,
    read_box,
    right_answer,
)
from vllm_litelvlm.evaluation.scenes.dataset import SceneSample
from vllm_litelvlm.evaluation.scenes.guesses import guess_accuracy

#: The most tokens of an answer: a box has eight and the end token.
_LONGEST = 9
#: How often guesses are drawn.
_DRAWS = 10


@dataclass(frozen=True)
class Judged:
    """A sample and whether it was answered right."""

    sample: SceneSample
    right: bool


@torch.no_grad()
def judge(
    llava: Llava, features: Tensor, maker: BatchMaker, step: int, device: torch.device
) -> list[Judged]:
    """Answer the questions of a step and compare.

    ``features`` of its pictures, [images, patches, width].
    """
    tokenizers, samples = maker.tokenizers, maker.samples(step)
    prompts = [
        [
            asked
            for asked, _ in tokenizers.questions([one.prompt for one in about], [""] * len(about))
        ]
        for about in samples
    ]
    memory = llava.read(features, torch.tensor(tokenizers.prefix(start=False), device=device))
    said = greedy(llava, memory, prompts)
    side = maker.grid * maker.patch
    judged = []
    for about, answers, offset in zip(samples, said, maker.offsets(step), strict=True):
        for sample, ids in zip(about, answers, strict=True):
            text = tokenizers.decode(ids)
            if sample.box is None:
                right = is_right(sample, text)
            else:
                box = read_box(text, side, side)
                right = box is not None and iou(box, maker.shifted(sample.box, offset)) > LEAST_IOU
            judged.append(Judged(sample, right))
    return judged


@torch.no_grad()
def greedy(
    llava: Llava, memory: Memory, prompts: Sequence[Sequence[Sequence[int]]]
) -> list[list[list[int]]]:
    """The likeliest next tokens of every image's questions, each alone, :data:`_LONGEST` long."""
    device = llava.embed_tokens.device
    lengths = torch.tensor([[len(ids) for ids in row] for row in prompts], device=device)
    tokens = torch.zeros((*lengths.shape, int(lengths.max()) + _LONGEST), dtype=torch.long)
    for image, row in enumerate(prompts):
        for place, ids in enumerate(row):
            tokens[image, place, : len(ids)] = torch.tensor(list(ids))
    tokens = tokens.to(device)
    for number in range(_LONGEST):
        hidden = llava.answer(memory, tokens[..., : int(lengths.max()) + number])
        ends = (lengths + number)[..., None]
        last = hidden.gather(2, (ends - 1)[..., None].expand(-1, -1, 1, hidden.shape[-1]))
        tokens.scatter_(2, ends, llava.lm_head(last).argmax(dim=-1))
    rows = [
        [ids[length : length + _LONGEST] for ids, length in zip(*row, strict=True)]
        for row in zip(tokens.tolist(), lengths.tolist(), strict=True)
    ]
    return rows


def answer_figures(judged: Iterable[Judged]) -> dict[str, float]:
    """Of each kind of question the share of right answers, and what two kinds of guesses give.

    ``answers`` is the mean over the kinds; ``.object`` an object of the image taken at random;
    ``.commonest`` the answer that is most often right.
    """
    judged = list(judged)
    kinds: dict[str, list[Judged]] = {}
    for one in judged:
        kinds.setdefault(one.sample.kind, []).append(one)
    random = np.random.Generator(np.random.PCG64(0))
    samples = [one.sample for one in judged]
    draws = [guess_accuracy(samples, random) for _ in range(_DRAWS)]
    figures = {}
    for kind, those in sorted(kinds.items()):
        figures[kind] = float(np.mean([one.right for one in those]))
        figures[f"{kind}.object"] = float(np.mean([draw[kind] for draw in draws]))
        if kind != "box":
            counts = Counter(right_answer(one.sample) for one in those)
            figures[f"{kind}.commonest"] = counts.most_common(1)[0][1] / len(those)
    for name in ("answers", "answers.object"):
        suffix = name.removeprefix("answers")
        figures[name] = float(np.mean([figures[f"{kind}{suffix}"] for kind in kinds]))
    return figures


def features_of(vision: VisionTower, maker: BatchMaker, step: int, device: torch.device) -> Tensor:
    """The vision tower's features of a LLaVA's step, without [CLS]."""
    pictures = on_device(maker.llava(step), device).pictures
    with torch.no_grad():
        features: Tensor = vision.features(pictures.patches, pictures.places)[:, 1:]
    return features

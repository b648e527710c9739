"""What a step of either model minimises."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.dense import DenseHeads, dense_losses, dense_total
from vllm_litelvlm.demo.training.llava import Llava, Memory
from vllm_litelvlm.demo.training.tensors import ClipBatch, LlavaBatch, Questions


def clip_losses(
    clip: Clip, heads: DenseHeads, batch: ClipBatch, shares: dict[str, float]
) -> dict[str, Tensor]:
    """The whole loss, ``loss``, and its parts."""
    features = clip.vision.features(batch.pictures.patches, batch.pictures.places)
    logits = clip.logits(clip.vision.embed(features), clip.text(batch.tokens, batch.ends))
    parts = dense_losses(heads(features[:, 1:]), batch.attributes, batch.sides, batch.weights)
    contrast = contrastive_loss(logits, batch.true)
    loss = shares["contrast"] * contrast + shares["dense"] * dense_total(parts)
    return {"loss": loss, "contrast": contrast, **parts}


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Each picture finds its text and each text its picture, expressions and captions apart.

    ``logits`` [images, 2 * images]. Pairs that are not each other's, yet true, count neither way.
    """
    images = len(logits)
    own = torch.arange(images, device=logits.device)
    losses = []
    for half in (slice(0, images), slice(images, None)):
        other = true[:, half] & ~torch.eye(images, dtype=torch.bool, device=true.device)
        pairs = logits[:, half].masked_fill(other, float("-inf"))
        losses += [F.cross_entropy(pairs, own), F.cross_entropy(pairs.T, own)]
    return torch.stack(losses).mean()


def llava_losses(llava: Llava, features: Tensor, batch: LlavaBatch) -> dict[str, Tensor]:
    """The mean loss of the answers' tokens; ``features`` without [CLS]."""
    return {"loss": llava_loss(llava, llava.read(features, batch.prefix), batch.groups)}


def llava_loss(llava: Llava, memory: Memory, groups: Sequence[Questions]) -> Tensor:
    """The mean loss of the answers' tokens, of questions about what was read."""
    answers = [spoken_loss(llava, llava.answer(memory, group.tokens), group) for group in groups]
    return torch.stack(answers).sum() / sum(len(group.targets) for group in groups)


def spoken_loss(llava: Llava, hidden: Tensor, group: Questions) -> Tensor:
    """The sum of the loss of the answers' tokens; ``hidden`` of the group's tokens."""
    logits = llava.lm_head(hidden.flatten(0, 2)[group.learned]).float()
    return F.cross_entropy(logits, group.targets, reduction="sum")

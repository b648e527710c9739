"""What a step of a model that answers with masks minimises."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_litelvlm.demo.training.keeper import Keeper
from vllm_litelvlm.demo.training.llava import Llava, Memory
from vllm_litelvlm.demo.training.losses import llava_loss, spoken_loss
from vllm_litelvlm.demo.training.mask_batches import masks_of
from vllm_litelvlm.demo.training.pointing import Pointer, box_prompts
from vllm_litelvlm.demo.training.tensors import MaskBatch, Rounds, Segments

#: Masks are compared at a side that is so much shorter than the picture's.
_COARSER = 2
#: What the parts of a loss count.
_SHARES = {"words": 1.0, "rounds": 1.0, "prompts": 4.0, "cover": 2.0, "dice": 1.0, "score": 0.2}
#: How far boxes that a SAM learns by are off at most, as a deviation in shares of the side.
_BLUR = 0.08


def sam_losses(pointer: Pointer, segments: Segments) -> dict[str, Tensor]:
    """Of a SAM whose prompts are boxes, each a little off, and unsure by as much."""
    blur = _BLUR * torch.rand_like(segments.boxes[..., :1])
    boxes = segments.boxes + blur * torch.randn_like(segments.boxes)
    width = pointer.sam.config.prompt_encoder_config.hidden_size
    prompts = box_prompts(boxes, width, blur)
    logits, scores = pointer.masks(pointer.features(segments.pixels), prompts)
    return _summed(mask_losses(logits, scores, masks_of(segments)))


def pointing_losses(
    llava: Llava,
    pointer: Pointer,
    hidden: Tensor,
    batch: MaskBatch,
    keeper: Keeper | None,
) -> dict[str, Tensor]:
    """Of a language model that points: its words and prompts.

    ``hidden`` and ``keeper`` as :func:`read` takes them; words are of whole images.
    """
    memory, answers = read(llava, hidden, batch, keeper)
    said = [spoken_loss(llava, *pair) for pair in zip(answers, batch.rounds, strict=True)]
    losses = {
        "words": llava_loss(llava, memory, batch.words.groups),
        "rounds": torch.stack(said).sum() / sum(len(group.targets) for group in batch.rounds),
    }
    prompts = prompts_of(pointer, answers, batch.rounds)
    wanted = box_prompts(batch.segments.boxes, prompts.shape[-1])
    losses["prompts"] = F.smooth_l1_loss(prompts, wanted, beta=0.5)
    return _summed(losses)


def read(
    llava: Llava, hidden: Tensor, batch: MaskBatch, keeper: Keeper | None
) -> tuple[Memory, list[Tensor]]:
    """Whole images, and the hidden states of the conversations about them.

    Args:
        llava: the language model.
        hidden: hidden state -2 of the images, [images, 1 + patches, width], [CLS] first.
        batch: the conversations.
        keeper: chooses what each of them sees; None for whole images.
    """
    prefix = batch.words.prefix
    memory = llava.read(hidden[:, 1:], prefix)
    if keeper is None:
        return memory, [llava.answer(memory, group.tokens) for group in batch.rounds]
    return memory, [keeper.answer(llava, hidden, prefix, group) for group in batch.rounds]


def prompts_of(pointer: Pointer, answers: Sequence[Tensor], rounds: Sequence[Rounds]) -> Tensor:
    """What [SEG] prompts SAM with, float32 [images, expressions, prompt width].

    ``answers``: the hidden states of the tokens of ``rounds``.
    """
    states = [
        hidden.flatten(1, 2).gather(1, group.pointing[..., None].expand(-1, -1, hidden.shape[-1]))
        for hidden, group in zip(answers, rounds, strict=True)
    ]
    prompts: Tensor = pointer.text_hidden_fcs(torch.cat(states, dim=1))
    return prompts


def mask_losses(logits: Tensor, scores: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """How well masks cover, by pixel and by mask, and how well they are scored.

    Args:
        logits: float32 [images, objects, any, any].
        scores: float32 [images, objects].
        masks: bool [images, objects, side, side].
    """
    wanted = F.avg_pool2d(masks.flatten(0, 1).float()[:, None], _COARSER)[:, 0]
    logits = F.interpolate(
        logits.flatten(0, 1)[:, None], wanted.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    cover = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    share = logits.sigmoid()
    both = (share * wanted).sum((1, 2))
    dice = 1 - (2 * both + 1) / (share.sum((1, 2)) + wanted.sum((1, 2)) + 1)
    # Objects cover a thirtieth of a picture: as much weight on those pixels as on the others.
    inside = wanted.mean((1, 2), keepdim=True).clamp(min=1e-3)
    weight = wanted * (0.5 / inside) + (1 - wanted) * (0.5 / (1 - inside))
    with torch.no_grad():
        found, right = logits > 0, wanted > 0.5
        union = (found | right).sum((1, 2)).clamp(min=1)
        ious = (found & right).sum((1, 2)) / union
    return {
        "cover": (cover * (0.5 + 0.5 * weight)).mean(),
        "dice": dice.mean(),
        "score": F.mse_loss(scores.flatten(), ious),
    }


def _summed(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = torch.stack([_SHARES[name] * loss for name, loss in losses.items()]).sum()
    return {"loss": whole, **losses}

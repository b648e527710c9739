"""How good masks are in training, at the picture's own size."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.keeper import Keeper
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.mask_batches import masks_of
from vllm_litelvlm.demo.training.mask_losses import prompts_of, read
from vllm_litelvlm.demo.training.pointing import Pointer, box_prompts
from vllm_litelvlm.demo.training.tensors import MaskBatch, Segments
from vllm_litelvlm.evaluation.masks.metrics import MaskScores, overlap

#: Prompts of pictures, and what they should give.
Prompted = tuple[Tensor, Segments]


@torch.no_grad()
def boxed(pointer: Pointer, batches: Iterable[Segments]) -> Iterator[Prompted]:
    """Objects with their boxes as prompts."""
    width = pointer.sam.config.prompt_encoder_config.hidden_size
    for segments in batches:
        yield box_prompts(segments.boxes, width), segments


@torch.no_grad()
def meant(
    clip: Clip,
    llava: Llava,
    pointer: Pointer,
    batches: Iterable[MaskBatch],
    keeper: Keeper | None = None,
) -> Iterator[Prompted]:
    """What expressions mean, with the prompts that the language model gives."""
    for batch in batches:
        pictures = batch.words.pictures
        hidden = clip.vision.features(pictures.patches, pictures.places)
        _, answers = read(llava, hidden, batch, keeper)
        yield prompts_of(pointer, answers, batch.rounds), batch.segments


@torch.no_grad()
def mask_figures(pointer: Pointer, prompted: Iterable[Prompted]) -> dict[str, float]:
    """cIoU, gIoU and the share of masks above an IoU of 0.5."""
    scores = MaskScores()
    for step, (prompts, segments) in enumerate(prompted):
        logits, _ = pointer.masks(pointer.features(segments.pixels), prompts)
        truths = masks_of(segments)
        size = truths.shape[-2:]
        found = F.interpolate(logits, size, mode="bilinear", align_corners=False) > 0
        for image, (ours, right) in enumerate(zip(found, truths, strict=True)):
            for mask, truth in zip(ours.cpu().numpy(), right.cpu().numpy(), strict=True):
                scores.add((step, image), overlap(mask, truth))
    figures = scores.figures()
    return {
        "masks.ciou": figures.ciou.mean,
        "masks.giou": figures.giou.mean,
        "masks.above_half": figures.precision[0.5].mean,
    }

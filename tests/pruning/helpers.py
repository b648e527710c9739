"""Made-up signals for tests of methods."""

from collections.abc import Sequence

import torch

from vllm_litelvlm.pruning.base import Signals


def random_signals(text_counts: Sequence[int], patches: int = 576, seed: int = 0) -> Signals:
    """Every signal, drawn at random; padding rows of ``similarity`` would win if they were read."""
    generator = torch.Generator().manual_seed(seed)
    images = len(text_counts)
    similarity = torch.randn(images, max(text_counts), patches, generator=generator)
    for image, texts in enumerate(text_counts):
        similarity[image, texts:] = torch.arange(patches) * 100.0 - 1e6
    return Signals(
        images=images,
        patches=patches,
        device=torch.device("cpu"),
        text_counts=list(text_counts),
        similarity=similarity,
        context=torch.rand(images, patches, generator=generator),
        context_normalised=torch.rand(images, patches, generator=generator),
        cls_attention=torch.rand(images, patches, generator=generator).softmax(dim=-1),
    )

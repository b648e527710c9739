"""A tiny checkpoint with masks, its parts, and pictures of many shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import TINY_GROUNDING, build_grounding
from vllm_litelvlm.grounding.head import TextProjection, read_projection
from vllm_litelvlm.grounding.sam import Sam


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return build_grounding(Path(tmp_path_factory.mktemp("grounding")))


@pytest.fixture(scope="session")
def model(built: Checkpoint) -> str:
    return str(built.llava)


@pytest.fixture(scope="session")
def sam(model: str) -> Sam:
    return Sam.load(model)


@pytest.fixture(scope="session")
def projection(model: str) -> TextProjection:
    return read_projection(model)


@pytest.fixture(scope="session")
def prompts(projection: TextProjection) -> Tensor:
    """Of nine expressions."""
    states = torch.randn(9, TINY_GROUNDING.llm_width, generator=torch.Generator().manual_seed(1))
    return projection(states)


#: Name to width and height; SAM's square is 256.
SIZES = {
    "square": (256, 256),
    "landscape": (451, 300),
    "portrait": (123, 340),
    "tiny": (5, 3),
    "pixel": (1, 1),
    "huge": (3001, 1999),
}


@pytest.fixture(scope="session")
def pictures(photographs: list[Image.Image]) -> dict[str, Image.Image]:
    return {
        name: photographs[number % len(photographs)].resize(size)
        for number, (name, size) in enumerate(SIZES.items())
    }


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)

"""Fixtures that every test may use: a small checkpoint and real photographs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

from vllm_litelvlm.demo.checkpoint import TINY, Checkpoint, build_checkpoint
from vllm_litelvlm.demo.llava_next import build_llava_next


def pytest_report_header() -> str:
    """What the results were had with."""
    import vllm

    others = (f"{name} {version(name)}" for name in ("torch", "transformers", "pillow"))
    return f"vllm {vllm.__version__}, {', '.join(others)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Tensors are small here and tests run side by side: more threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A LLaVA and its CLIP in the published layouts, random weights, float32."""
    return build_checkpoint(Path(tmp_path_factory.mktemp("checkpoint")), TINY)


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A LLaVA-NeXT and its CLIP, as :func:`checkpoint`, with tiles of 64 patches."""
    return build_llava_next(Path(tmp_path_factory.mktemp("llava-next")))


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Four photographs that ship with scikit-image."""
    from skimage import data

    return [
        Image.fromarray(load()).convert("RGB")
        for load in (data.astronaut, data.coffee, data.chelsea, data.rocket)
    ]

"""A small GLaMM, its CLIP, and what the converter makes of them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.convert.builder import Source, make_source, write_clip, write_glamm
from vllm_litelvlm.convert.glamm import convert_glamm


@dataclass(frozen=True)
class Converted:
    """Folders, and what the GLaMM was made of."""

    source: Source
    glamm: Path
    clip: Path
    output: Path


@pytest.fixture(scope="session")
def source() -> Source:
    return make_source()


@pytest.fixture(scope="session", params=["bins", "safetensors"])
def converted(
    request: pytest.FixtureRequest, source: Source, tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    """From shards of PyTorch's and from one file of safetensors."""
    folder = tmp_path_factory.mktemp(request.param)
    glamm = write_glamm(folder / "glamm", source, request.param)
    clip = write_clip(folder / "clip", source, request.param)
    convert_glamm(glamm, folder / "output", str(clip))
    return Converted(source, glamm, clip, folder / "output")


@pytest.fixture(scope="session")
def clip(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), source, "safetensors")

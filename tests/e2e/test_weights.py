"""Weights that change under a running engine, in every way that vLLM has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.e2e.runners import Runner, slow_on_v2
from vllm_litelvlm.demo.checkpoint import Checkpoint

#: The layer that vLLM's tower has not.
LAST = "vision_model.encoder.layers.3."
#: Each reads other weights of the tower.
OPTIONS = [
    {"method": "fovea", "budget": 64},
    {"method": "visionzip", "budget": 64},
    {"method": "litelvlm", "budget": 64},
    {"method": "keep-all"},
]


def other_checkpoint(llava: Path, folder: Path) -> Path:
    """The model with another tower.

    Of the layers that vLLM's tower has, norms and biases alone change: on a CPU vLLM packs the
    matrices of a layer, and nobody can write over them.
    """
    copytree(llava, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        small = "layer_norm1" in name or "layrnorm" in name or name.endswith("_proj.bias")
        if "vision_tower" in name and (small or LAST in name):
            tensor += (
                0.5
                * tensor.std().nan_to_num(0).clamp(min=0.05)
                * torch.randn(tensor.shape, generator=generator)
            )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def steps(
    runner: Runner,
    checkpoint: Checkpoint,
    photographs: list[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What was answered after every step of ``weights_run.py``."""
    folder = tmp_path_factory.mktemp("weights")
    photographs[0].save(folder / "image.png")
    jobs = {
        "model": str(checkpoint.llava),
        "clip": str(checkpoint.clip),
        "other": str(other_checkpoint(checkpoint.llava, folder / "other")),
        "last": LAST,
        "image": str(folder / "image.png"),
        "options": OPTIONS,
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.weights_run", str(folder / "jobs.json")],
        env={
            **os.environ,
            **runner.environment,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text())


@slow_on_v2
@pytest.mark.parametrize(
    ("step", "start"),
    [
        ("model, one tensor loaded", "model, fresh"),
        ("other, in place", "other, fresh"),
        ("model, reloaded", "model, fresh"),
        ("other, loaded in part", "other, fresh"),
        ("other, after a deep sleep", "other, fresh"),
        ("model, after dummy", "model, fresh"),
    ],
)
def test_changed_weights_answer_as_a_fresh_start_on_them(steps: Any, step: str, start: str) -> None:
    assert steps[step] == steps[start]


@slow_on_v2
def test_steps_differ(steps: Any) -> None:
    """Or the other tests would hold nothing."""
    for model, other, dummy in zip(
        steps["model, fresh"], steps["other, fresh"], steps["dummy"], strict=True
    ):
        assert model != other
        assert model != dummy

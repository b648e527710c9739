"""The example that compares methods runs as its docstring says."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.pruning.registry import decoder_method_names, method_names

EXAMPLE = Path(__file__).parents[2] / "examples" / "compare_methods.py"
CELL, GAP, COLUMNS = (336, 336 + 44), 8, 4


@pytest.fixture
def photograph(photographs: Sequence[Image.Image], tmp_path: Path) -> Path:
    photographs[1].save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def compare(
    checkpoint: Checkpoint, photograph: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), str(checkpoint.llava), str(photograph)]
    command += ["Where is the cup?", "--clip-model", str(checkpoint.clip), "--max-tokens", "2"]
    return subprocess.run(
        [*command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def size_of(pictures: int) -> tuple[int, int]:
    rows = math.ceil(pictures / COLUMNS)
    return GAP + COLUMNS * (CELL[0] + GAP), GAP + rows * (CELL[1] + GAP)


def test_every_method_is_in_the_table_and_in_the_picture(
    deep: Checkpoint, photograph: Path, tmp_path: Path
) -> None:
    output = tmp_path / "methods.png"
    done = compare(deep, photograph, "--budget", "64", "--output", str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    every = [*method_names(), *decoder_method_names()]
    named = [
        cells[1].strip() for line in done.stdout.splitlines() if (cells := line.split("│"))[1:]
    ]
    assert [name for name in named if name] == every
    assert "prumerge would keep" in done.stdout
    assert Image.open(output).size == size_of(len(every) + 1)


def test_methods_that_cannot_run_are_told_and_left_out(
    checkpoint: Checkpoint, photograph: Path, tmp_path: Path
) -> None:
    output = tmp_path / "methods.png"
    methods = ["fastv", "sparsevlm", "random"]
    done = compare(
        checkpoint, photograph, "--budget", "100", "--output", str(output), "--methods", *methods
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fastv is left out: litelvlm option 'layer' is 2" in done.stdout
    assert "sparsevlm is left out: litelvlm option 'budget' comes to 100" in done.stdout
    assert Image.open(output).size == size_of(2)


def test_budget_that_the_image_does_not_have_is_refused_in_a_sentence(
    checkpoint: Checkpoint, photograph: Path
) -> None:
    done = compare(checkpoint, photograph, "--budget", "600")
    assert done.returncode == 2
    assert "'budget' is 600" in done.stderr
    assert "Traceback" not in done.stderr

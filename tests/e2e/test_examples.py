"""Each example runs as its docstring says."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_litelvlm.demo.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def photograph(photographs: Sequence[Image.Image], tmp_path: Path) -> str:
    photographs[1].save(tmp_path / "photograph.png")
    return str(tmp_path / "photograph.png")


def run(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def prompt_tokens(printed: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+) prompt tokens", printed)]


def test_openai_client_asks_with_and_without_options(server: Any, photograph: str) -> None:
    common = [photograph, "Where is the cup?", "--url", f"{server.url}/v1", "--max-tokens", "4"]
    [default] = prompt_tokens(run("openai_client.py", *common))
    [pruned] = prompt_tokens(run("openai_client.py", *common, "--budget", "64"))
    assert default - pruned == 192 - 64
    [guided] = prompt_tokens(
        run("openai_client.py", *common, "--budget", "64", "--text", "a cup", "--text", "a spoon")
    )
    assert guided == pruned


def test_batch_of_expressions_shares_one_pruned_set_when_asked_to(
    server: Any, photograph: str
) -> None:
    expressions = ["the cup", "the spoon", "the table"]
    common = [photograph, *expressions, "--url", f"{server.url}/v1", "--max-tokens", "4"]
    server.forget()
    before = len(server.selections())
    apart = run("batch_expressions.py", *common, "--budget", "64")
    assert len(server.selections()) - before == 3
    together = run("batch_expressions.py", *common, "--budget", "64", "--shared")
    assert len(server.selections()) - before == 4
    assert prompt_tokens(apart) == prompt_tokens(together)
    assert len(prompt_tokens(apart)) == 3


def test_offline_class_answers_at_every_budget(checkpoint: Checkpoint, photograph: str) -> None:
    printed = run(
        "offline.py",
        *[str(checkpoint.llava), photograph, "Where is the cup?"],
        *["--clip-model", str(checkpoint.clip), "--dtype", "float32", "--max-tokens", "4"],
    )
    whole, third, small = prompt_tokens(printed)
    assert (whole - third, whole - small) == (576 - 192, 576 - 64)

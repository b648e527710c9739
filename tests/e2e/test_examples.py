"""Each example runs as its docstring says."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from tests.e2e.client import request, user_turn
from tests.e2e.runners import on_v1_alone
from vllm_litelvlm.demo.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def photograph(photographs: Sequence[Image.Image], tmp_path: Path) -> str:
    photographs[1].save(tmp_path / "photograph.png")
    return str(tmp_path / "photograph.png")


def run(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
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


@on_v1_alone
def test_engines_in_ray_actors_answer_as_a_server_does(
    server: Any, checkpoint: Checkpoint, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    questions, expected = [], []
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for number, photograph in enumerate(photographs[:3]):
            photograph.save(tmp_path / f"{number}.png")
            for text in ("Where is the cup?", "Is there a spoon?"):
                questions.append({"image": str(tmp_path / f"{number}.png"), "text": text})
                asked = request(user_turn(text, photograph), {"budget": 64}, tokens=4)
                completion = client.chat.completions.create(**asked)
                answer = (completion.choices[0].message.content or "").strip()
                tokens = completion.usage.prompt_tokens
                expected.append({**questions[-1], "answer": answer, "prompt_tokens": tokens})
    asking, answering = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    asking.write_text("".join(json.dumps(question) + "\n" for question in questions))
    run(
        "ray_batch.py",
        *[str(checkpoint.llava), str(asking), str(answering)],
        *["--clip-model", str(checkpoint.clip), "--dtype", "float32", "--max-tokens", "4"],
        *["--budget", "64", "--engines", "2", "--batch-size", "2"],
    )
    assert [json.loads(line) for line in answering.read_text().splitlines()] == expected

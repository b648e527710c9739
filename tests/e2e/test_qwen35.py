"""Qwen3.5 with its recurrent layers, which vLLM computes in bfloat16 alone on a CPU.

Without them, and in float32, it is among the neighbours of ``test_qwen``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.qwen_reference import QwenReference
from tests.e2e.runners import Runner, on_v1_alone
from tests.e2e.workplace import Workplace, saved
from vllm_litelvlm.demo.qwen import build_qwen

QUESTION = "Where is the red cup?"
TOKENS = 8
#: Of a log-probability, by bfloat16: stock vLLM beside transformers in float32 comes to 0.02.
ROUNDING = 0.03
ASKED: list[tuple[list[int], dict[str, Any]]] = [
    ([1], {"budget": 40}),
    ([3], {"budget": 0.25, "method": "fovea"}),
    ([0], {"budget": 30, "positions": "compact"}),
    ([2, 0], {"budget": 0.5, "method": "divprune"}),
]


@on_v1_alone
def test_recurrent_layers_read_the_kept_tokens_in_order(
    runner: Runner,
    photographs: Sequence[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = tmp_path / "trace.jsonl"
    monkeypatch.setenv("VLLM_LITELVLM_TRACE", str(trace))
    model = build_qwen(tmp_path / "model", "qwen3_5", dtype=torch.bfloat16)
    reference = QwenReference(model)
    sizes = [(320, 320), (600, 400), (130, 100), (280, 480)]
    pictures = [one.resize(size) for one, size in zip(photographs, sizes, strict=True)]
    files = saved(pictures, tmp_path)
    engine = {
        "model": str(model),
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 96,
        "limit_mm_per_prompt": {"image": 2},
        "additional_config": {"litelvlm": {}},
    }
    place = Workplace(tmp_path, files, engine, runner)

    def job(numbers: Sequence[int], options: Any) -> dict[str, Any]:
        return {
            "prompt": reference.prompt(QUESTION, [pictures[number] for number in numbers]),
            "images": [files[number] for number in numbers],
            "options": options,
            "tokens": TOKENS,
        }

    def distance(numbers: Sequence[int], kept: Any, answer: Any, original: bool = True) -> float:
        some = [pictures[number] for number in numbers]
        prompt = reference.prompt(QUESTION, some)
        _, likely = reference.follow(prompt, some, kept, answer["token_ids"], original)
        return float(np.sqrt(np.mean(np.subtract(likely, answer["logprobs"]) ** 2)))

    whole = [[job([number], {"budget": 1.0})] for number in range(len(pictures))]
    pruned = [job(*one) for one in ASKED]
    answers = place.run([*whole, *([one] for one in pruned), pruned])
    stock = place.run([[{**one, "options": None}] for [one] in whole], activate=False)
    assert answers[: len(whole)] == stock

    lines = [json.loads(line)["kept"] for line in trace.read_text().splitlines()]
    for number, [answer] in enumerate(stock):
        assert distance([number], [lines[number]], answer) < ROUNDING
    alone, together, following = answers[len(whole) : -1], answers[-1], lines[len(whole) :]
    for (numbers, options), [answer], again in zip(ASKED, alone, together, strict=True):
        kept, following = following[: len(numbers)], following[len(numbers) :]
        original = "positions" not in options
        off = distance(numbers, kept, answer, original)
        assert off < ROUNDING
        others = [[index + 1 for index in one[:-1]] + one[:1] for one in kept]
        assert distance(numbers, [sorted({*one}) for one in others], answer, original) > 2 * off
        assert again["logprobs"][0] == pytest.approx(answer["logprobs"][0], abs=0.1)
        assert again["prompt_tokens"] == answer["prompt_tokens"]

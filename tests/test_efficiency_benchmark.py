"""The efficiency benchmark: its formulas beside the paper's numbers, and a real run at tiny sizes.

No test depends on how long anything took.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.breakdown_report import shown
from benchmarks.efficiency_costs import Decoder, KvCache
from benchmarks.efficiency_report import megabytes
from tests.test_breakdown_benchmark import PROMPT_TEXT_TOKENS, run, table_rows
from vllm_litelvlm.demo.checkpoint import TINY

#: LLaVA-1.5-7B's language model, and GLaMM's, in float16.
VICUNA = Decoder(layers=32, width=4096, mlp=11008, number_bytes=2)
CASES = [("keep-all", 576)] + [(m, b) for b in (100, 64) for m in ("vispruner", "litelvlm")]
OUTPUT_TOKENS = 3


@pytest.mark.parametrize(("tokens", "told"), [(700, 4.66), (192 + 130, 2.11), (64 + 130, 1.27)])
def test_operations_are_those_of_the_papers_table_6(tokens: int, told: float) -> None:
    assert round(VICUNA.prefill_operations(tokens) / 1e12, 2) == told


def test_operations_are_the_sum_over_a_layers_matrix_products() -> None:
    n, d, m = 10, 6, 8
    projections, attention, gated = 4 * n * d * d, 2 * n * n * d, 3 * n * d * m
    decoder = Decoder(layers=5, width=d, mlp=m, number_bytes=2)
    assert decoder.prefill_operations(n) == 5 * (projections + attention + gated)


@pytest.mark.parametrize(
    ("tokens", "told", "apart"), [(700, 0.81, 0.1), (192 + 130, 0.35, 0.05), (64 + 130, 0.21, 0.05)]
)
def test_stored_activations_are_near_the_papers_table_6(
    tokens: int, told: float, apart: float
) -> None:
    assert VICUNA.stored_bytes(tokens) / 1e9 == pytest.approx(told, rel=apart)


def test_decoder_is_read_from_a_llama_configuration() -> None:
    config = SimpleNamespace(num_hidden_layers=32, hidden_size=4096, intermediate_size=11008)
    assert Decoder.of(config, number_bytes=2) == VICUNA
    assert VICUNA.hidden_bytes(700) == 700 * 4096 * 2


def test_kv_cache_is_counted_in_tokens_and_in_whole_blocks() -> None:
    spec = SimpleNamespace(
        num_kv_heads=4, head_size=64, dtype=torch.bfloat16, block_size=16, page_size_bytes=16384
    )
    cache = KvCache.of(SimpleNamespace(layer_names=["a", "b", "c"], kv_cache_spec=spec))
    assert cache.exact_bytes(1) == 3 * 2 * 4 * 64 * 2
    assert cache.exact_bytes(16) == cache.block_bytes(16) == cache.block_bytes(1) == 3 * 16384
    assert cache.block_bytes(17) == 2 * 3 * 16384


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = Path(tmp_path_factory.mktemp("efficiency"))
    arguments = ["--budgets", "64", "100", "--repetitions", "2"]
    arguments += ["--output-tokens", str(OUTPUT_TOKENS)]
    (output / "printed").write_text(run("benchmarks.efficiency", output, arguments))
    return output


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_every_row_is_asked_in_every_repetition(result: dict[str, Any]) -> None:
    asked = [(r["repetition"], *r["case"].values(), r["state"]) for r in result["requests"]]
    wanted = {(number, *case, "cold") for number in (0, 1) for case in CASES}
    assert len(asked) == len(wanted)
    assert set(asked) == wanted
    assert [(row["method"], row["budget"]) for row in result["summary"]] == CASES


def test_sizes_are_those_of_the_built_checkpoint(result: dict[str, Any]) -> None:
    sizes = {"layers": TINY.llm_layers, "width": TINY.llm_width, "mlp": TINY.llm_mlp}
    assert result["decoder"] == {**sizes, "number_bytes": 2}
    cache = result["kv_cache"]
    assert cache["layers"] == TINY.llm_layers
    assert cache["kv_heads"] == TINY.llm_kv_heads
    assert cache["head_size"] == TINY.llm_width // TINY.llm_heads
    assert cache["number_bytes"] == 2


def test_a_whole_block_by_vllms_count_is_its_tokens_by_ours(result: dict[str, Any]) -> None:
    cache = KvCache(**result["kv_cache"])
    assert cache.block_bytes(1) == cache.exact_bytes(cache.block_tokens)


def test_costs_follow_from_the_prompts_tokens(result: dict[str, Any]) -> None:
    decoder, cache = Decoder(**result["decoder"]), KvCache(**result["kv_cache"])
    for row in result["summary"]:
        tokens = row["budget"] + PROMPT_TEXT_TOKENS
        assert row["prompt_tokens"] == tokens
        assert row["operations"] == decoder.prefill_operations(tokens)
        assert row["kv_tokens"] == tokens + OUTPUT_TOKENS - 1
        assert row["kv_exact_bytes"] == cache.exact_bytes(row["kv_tokens"])
        assert row["kv_exact_bytes"] <= row["kv_block_bytes"]
        assert row["kv_block_bytes"] < row["kv_exact_bytes"] + cache.block_bytes(1)
        assert row["stored_bytes"] == 4 * TINY.llm_layers * row["hidden_bytes"]


def test_every_request_is_new_to_all_caches(result: dict[str, Any]) -> None:
    for request in result["requests"]:
        answer, method = request["answer"], request["case"]["method"]
        assert answer["cached_tokens"] == 0
        assert answer["times"]["prefill_tokens"] == answer["prompt_tokens"]
        assert answer["times"]["calls"]["vision tower"] == 1
        assert answer["times"]["calls"].get("text tower", 0) == (method == "litelvlm")


def test_table_and_json_agree(folder: Path, result: dict[str, Any]) -> None:
    printed = (folder / "printed").read_text()
    assert (folder / "table.md").read_text().startswith(printed.strip())
    for row, cells in zip(result["summary"], table_rows(printed), strict=True):
        times = ("first_token", "language_prefill", "total")
        sizes = ("kv_block_bytes", "kv_exact_bytes", "hidden_bytes", "stored_bytes")
        assert cells[:3] == [
            row["name"],
            str(row["prompt_tokens"]),
            f"{row['operations'] / 1e12:.3g}",
        ]
        assert cells[3:6] == [shown(row[name]) for name in times]
        assert cells[6:] == [megabytes(row[name]) for name in sizes]
        assert 0 < row["language_prefill"] < row["first_token"] < row["total"]


def test_result_holds_what_it_takes_to_repeat_it(folder: Path, result: dict[str, Any]) -> None:
    command = r"(\w+=\S+ )*python -m benchmarks\.efficiency --geometry tiny"
    assert re.match(command, result["command"])
    assert "VLLM_CPU_KVCACHE_SPACE=1 " in result["command"]
    assert result["command"] in (folder / "table.md").read_text()
    assert {"machine", "versions", "finished", "threads", "settings"} <= set(result)
    with Image.open(folder / "plot.png") as plot:
        assert plot.width > plot.height > 100

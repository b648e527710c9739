"""The throughput benchmark, really run at tiny sizes; no test depends on how long anything took."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoints, rounds, throughput
from benchmarks.record import NAME

ARGUMENTS = [
    *("--geometry", "tiny", "--workload", "chat", "images", "--turns", "3", "--budgets", "64"),
    *("--focus", "0.5"),
    *("--requests", "3", "--rounds", "1", "--concurrency", "2", "--output-tokens", "2"),
    *("--kv-cache-gb", "1"),
]
IMAGES = ["stock vLLM", "litelvlm, budget 64"]
WAYS = ("focus 0.5", "guide first", "without caches")
CHAT = [*IMAGES, *(f"{IMAGES[1]}, {way}" for way in WAYS)]


@pytest.fixture(scope="module", autouse=True)
def tiny_geometry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CHECKPOINTS", tmp_path_factory.mktemp("checkpoints"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run with three real servers."""
    output = Path(tmp_path_factory.mktemp("throughput"))
    assert throughput.main([*ARGUMENTS, "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def timings(result: dict[str, Any], workload: str, condition: str) -> list[dict[str, Any]]:
    (block,) = (
        block
        for block in result["blocks"]
        if (block["case"]["workload"], block["condition"]) == (workload, condition)
    )
    return block["timings"]


def test_every_condition_of_every_workload_is_measured(result: dict[str, Any]) -> None:
    measured = Counter(
        (block["case"]["workload"], block["condition"]) for block in result["blocks"]
    )
    expected = [*(("chat", name) for name in CHAT), *(("images", name) for name in IMAGES)]
    assert measured == Counter(expected)


def test_prompts_are_shorter_by_what_was_pruned(result: dict[str, Any]) -> None:
    stock, pruned = ([t["prompt_tokens"] for t in timings(result, "images", n)] for n in IMAGES)
    assert [full - left for full, left in zip(stock, pruned, strict=True)] == 3 * [2 * (576 - 64)]


def test_chats_are_sent_turn_by_turn_with_all_before(result: dict[str, Any]) -> None:
    for condition in CHAT:
        turns = timings(result, "chat", condition)
        assert [timing["turn"] for timing in turns] == [0, 1, 2]
        lengths = [timing["prompt_tokens"] for timing in turns]
        assert lengths == sorted(set(lengths))


def test_later_turns_find_earlier_ones_in_the_prefix_cache(result: dict[str, Any]) -> None:
    """Not where the last turn keeps other tokens. A block holds 128 tokens on a CPU."""
    stock, default, focus, first, uncached = (
        timings(result, "chat", name)[-1]["cached_tokens"] for name in CHAT
    )
    assert stock >= 512
    assert default == uncached == 0
    assert focus == first == 128


def test_servers_say_how_many_requests_they_hold(result: dict[str, Any]) -> None:
    assert set(result["capacities"]) == {"stock", "litelvlm", "litelvlm-without-caches"}
    for found in result["capacities"].values():
        assert found["tokens"] == 2048
        assert found["requests"] > 1
        assert found["source"] == "the engine's own log"


def test_tables_and_plots_are_written_for_each_workload(folder: Path) -> None:
    table = (folder / "table.md").read_text()
    assert "(`chat`)" in table
    assert "(`images`)" in table
    assert "Mean TTFT (s) of each turn" in table
    assert (folder / "plot-chat.png").is_file()
    assert (folder / "plot-images.png").is_file()


def test_a_complete_run_is_reported_again_without_servers(
    folder: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(rounds, "serve")
    assert throughput.main([*ARGUMENTS, "--output", str(folder), "--resume"]) == 0
    again = json.loads((folder / "results.json").read_text())
    assert again["blocks"] == result["blocks"]
    assert again["summary"] == result["summary"]


def test_a_run_with_other_settings_is_refused(
    folder: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / NAME).read_text()
    others = [*ARGUMENTS, "--seed", "1", "--output", str(folder), "--resume"]
    assert throughput.main(others) == 1
    assert "seed was 0 and is 1" in " ".join(capsys.readouterr().err.split())
    assert (folder / NAME).read_text() == before

"""The breakdown benchmark, really run at tiny sizes; no test depends on how long anything took.

vLLM changes the process that it runs in, so the run has one of its own.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import breakdown, efficiency
from benchmarks.breakdown_engine import Answer, Questions
from benchmarks.breakdown_meter import PARTS, Meter, Times
from benchmarks.breakdown_report import markdown, shown, summarise
from benchmarks.breakdown_rounds import STATES, Case, Request
from benchmarks.breakdown_settings import Settings
from benchmarks.checkpoints import Source

ROOT = Path(breakdown.__file__).parents[1]
PROMPT_TEXT_TOKENS = 40


def run(module: str, folder: Path, arguments: Sequence[str]) -> str:
    """Run a command in ``folder``, where it builds its checkpoint; returns what it prints."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = ["--geometry", "tiny", "--output", str(folder), *arguments]
    done = subprocess.run(
        [sys.executable, "-m", module, *given],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def table_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = Path(tmp_path_factory.mktemp("breakdown"))
    arguments = ["--budgets", "64", "576", "--repetitions", "2", "--output-tokens", "3"]
    (output / "printed").write_text(run("benchmarks.breakdown", output, arguments))
    return output


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def calls(result: dict[str, Any], budget: int, state: str) -> dict[str, int]:
    """How often a request called what, the same in every repetition."""
    some = [
        request["answer"]["times"]["calls"]
        for request in result["requests"]
        if (request["case"]["budget"], request["state"]) == (budget, state)
    ]
    assert len(some) == 2
    assert some[0] == some[1]
    return some[0]


def test_every_state_is_asked_at_every_budget_in_every_repetition(result: dict[str, Any]) -> None:
    asked = [(r["repetition"], r["case"]["budget"], r["state"]) for r in result["requests"]]
    wanted = {
        (number, budget, state) for number in (0, 1) for budget in (576, 64) for state in STATES
    }
    assert len(asked) == len(wanted)
    assert set(asked) == wanted


def test_parts_of_a_request_sum_to_its_total(result: dict[str, Any]) -> None:
    for request in result["requests"]:
        seconds = request["answer"]["times"]["seconds"]
        assert list(seconds) == list(PARTS)
        assert all(value >= 0 for value in seconds.values())
        total = math.fsum(seconds.values())
        assert 0 < request["answer"]["first_token"] < total
    for row in result["summary"]:
        assert math.isclose(math.fsum(row["shares"].values()), 1)


@pytest.mark.parametrize(
    ("state", "vision_tower", "text_tower"),
    [("cold", 1, 1), ("other text", 0, 1), ("repeated text", 1, 0), ("both seen", 0, 0)],
)
def test_pruned_request_runs_the_towers_that_no_cache_replaces(
    result: dict[str, Any], state: str, vision_tower: int, text_tower: int
) -> None:
    found = calls(result, 64, state)
    assert found.get("vision tower", 0) == vision_tower
    assert found.get("text tower", 0) == text_tower
    assert [found[part] for part in ("guidance", "selection", "projector")] == [1, 1, 1]


def test_unpruned_request_is_neither_scored_nor_encoded_twice(result: dict[str, Any]) -> None:
    for state, encoded in (("cold", 1), ("repeated text", 1), ("other text", 0), ("both seen", 0)):
        found = calls(result, 576, state)
        assert "guidance" not in found
        assert "selection" not in found
        assert found.get("vision tower", 0) == found.get("projector", 0) == encoded


def test_language_model_prefills_the_prompt_once_and_decodes_the_rest(
    result: dict[str, Any],
) -> None:
    for request in result["requests"]:
        answer, budget = request["answer"], request["case"]["budget"]
        found = answer["times"]["calls"]
        assert (found["prefill"], found["decode"], found["logits"]) == (1, 2, 3)
        assert answer["output_tokens"] == 3
        assert answer["prompt_tokens"] == budget + PROMPT_TEXT_TOKENS
        computed = answer["times"]["prefill_tokens"]
        assert computed == answer["prompt_tokens"] - answer["cached_tokens"]
        seen = budget == 576 and request["state"] in ("other text", "both seen")
        assert (answer["cached_tokens"] > 0) == seen


def test_tables_and_json_agree(folder: Path, result: dict[str, Any]) -> None:
    printed = (folder / "printed").read_text()
    text = (folder / "table.md").read_text()
    assert text.startswith(printed.strip())
    parts, tower = printed.split("Guidance and selection, of")
    for row, cells in zip(result["summary"], table_rows(parts), strict=True):
        assert cells[:2] == [str(row["budget"]), row["state"]]
        for part, cell in zip(PARTS, cells[2:], strict=False):
            assert cell == f"{shown(row['seconds'][part])} ({row['shares'][part]:.1%})"
        assert cells[-1] == shown(row["total"])
    shares = {row["state"]: row["tower_share"] for row in result["summary"] if row["pruned"]}
    assert list(shares) == list(STATES)
    assert table_rows(tower) == [["64", *(f"{share:.2%}" for share in shares.values())]]


def test_result_holds_what_it_takes_to_repeat_it(folder: Path, result: dict[str, Any]) -> None:
    command = r"(\w+=\S+ )*python -m benchmarks\.breakdown --geometry tiny"
    assert re.match(command, result["command"])
    assert "VLLM_CPU_KVCACHE_SPACE=1 " in result["command"]
    assert result["command"] in (folder / "table.md").read_text()
    assert {"machine", "versions", "finished", "threads", "settings"} <= set(result)
    assert all(request["other_load"] >= 0 for request in result["requests"])
    with Image.open(folder / "plot.png") as plot:
        assert plot.width > plot.height > 100


def test_meter_charges_every_moment_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0, 0, 1, 3, 6, 10, 15, 21])  # the first is of construction
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(moments)))
    meter = Meter()
    meter.start()  # at 0
    with meter.part("selection"):  # at 1
        with meter.part("guidance"), meter.part("vision tower"):  # at 3 and 6
            pass  # left at 10 and 15
        # left at 21
        moments = iter([21, 28])
    times = meter.stop()
    expected = {"rest": 8, "selection": 2 + 6, "guidance": 3 + 5, "vision tower": 4}
    assert {part: s for part, s in times.seconds.items() if s} == expected
    assert times.total == 28
    assert times.calls == {"selection": 1, "guidance": 1, "vision tower": 1}


def settings() -> Settings:
    source = Source("model", None, "a model")
    return Settings(source, 576, (576, 64), 3, 8, 0, Path("nowhere"))


def made_up(budget: int, state: str, repetition: int, **seconds: float) -> Request:
    parts = dict.fromkeys(PARTS, 0.0)
    parts |= {part.replace("_", " "): value for part, value in seconds.items()}
    times = Times(parts, {"prefill": 1}, budget)
    return Request(repetition, Case("litelvlm", budget), state, Answer(times, 1, budget, 0, 8), 0.0)


def test_summary_takes_medians_and_compares_with_the_tower_of_the_same_repetition() -> None:
    """Each repetition is twice as slow as the one before; the ratios stay."""
    requests = []
    for number, slow in enumerate((1.0, 2.0, 4.0)):
        requests += [
            made_up(576, "cold", number, vision_tower=10 * slow, prefill=30 * slow),
            made_up(576, "other text", number, decode=slow),
            made_up(64, "cold", number, vision_tower=10 * slow, guidance=slow, selection=slow),
            made_up(64, "other text", number, guidance=0.5 * slow, decode=1.5 * slow),
        ]
    rows = summarise(settings(), requests)
    assert [(row.budget, row.pruned) for row in rows] == [(576, False)] * 2 + [(64, True)] * 2
    unpruned, _, cold, other = rows
    assert (unpruned.total, unpruned.tower_share) == (80, None)
    assert unpruned.shares["prefill"] == 0.75
    assert (cold.state, cold.tower_share) == ("cold", pytest.approx(0.2))
    assert (other.state, other.tower_share) == ("other text", pytest.approx(0.05))
    assert other.seconds["decode"] == 3
    table = markdown(rows)
    assert "| 64 | 20.00% | 5.00% |" in table
    assert "3,000 (75.0%) | 0.00 (0.0%) | 4,000 |" in table


def test_images_and_texts_are_new_and_texts_equally_long() -> None:
    questions = Questions(seed=0)
    images = [questions.image().tobytes() for _ in range(3)]
    texts = [questions.text() for _ in range(200)]
    assert len(set(images)) == 3
    assert len(set(texts)) == 200
    assert all(sorted(one) == sorted(other) for one, other in pairwise(texts))


@pytest.mark.parametrize("command", [breakdown, efficiency])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clip-model", "clip"], "--clip-model belongs to --model"),
        (["--budgets", "0"], "0 is not a whole number from 1"),
        (["--repetitions", "-1"], "-1 is not a whole number from 1"),
        (["--output-tokens", "2000"], "2000 is above 1024"),
        (["--geometry", "huge"], "huge"),
    ],
)
def test_command_line_refuses_what_cannot_be_measured(
    command: Any, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("command", "budget"), [(breakdown, 577), (efficiency, 576)])
def test_budget_of_too_many_tokens_is_told_before_the_engine_starts(
    command: Any,
    budget: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["--geometry", "tiny", "--budgets", "64", str(budget)]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert f"error: --budgets {budget} is too many: an image of this model has 576" in error

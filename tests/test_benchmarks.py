"""The benchmark's statistics, report and workload, without a server."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.client import Block, MeasurementError, Timing, check_prompt_lengths
from benchmarks.machine import Machine, OtherLoad, package_versions
from benchmarks.report import Estimate, markdown_table, percentile, summarise, write
from benchmarks.rounds import Settings, rotated
from benchmarks.throughput import arguments_parser, main
from benchmarks.workload import IMAGE_SIZE, Workload


def timing(first_token: float, prompt_tokens: int = 600, output_tokens: int = 5) -> Timing:
    """A request whose tokens come half a second apart."""
    last_token = first_token + 0.5 * (output_tokens - 1)
    return Timing(0.0, first_token, last_token, prompt_tokens, output_tokens)


def block(round: int, budget: int | None, seconds: float, first_tokens: Sequence[float]) -> Block:
    length = 600 if budget is None else 24 + budget
    return Block(round, budget, seconds, tuple(timing(first, length) for first in first_tokens))


#: The plugin at 128 tokens is 2 and then 4 times as fast as stock.
BLOCKS = [
    block(0, None, 8.0, [2.0, 4.0]),
    block(0, 128, 4.0, [1.0, 2.0]),
    block(1, 128, 2.0, [0.5, 0.5]),
    block(1, None, 8.0, [2.0, 2.0]),
]


def settings(output: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "model": "model",
        "clip_model": None,
        "visual_tokens": 576,
        "budgets": (128,),
        "requests": 2,
        "rounds": 2,
        "output_tokens": 5,
        "concurrency": 2,
        "seed": 0,
        "output": output,
    }
    return Settings(**{**values, **changes})


def test_estimate_has_the_standard_error_of_the_mean() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.standard_error == pytest.approx(1 / math.sqrt(3))
    assert estimate.show(2) == "2.00 ± 0.58"


def test_estimate_of_one_round_has_no_standard_error() -> None:
    assert Estimate.of([1.5]) == Estimate(1.5, None)
    assert Estimate.of([1.5]).show(1) == "1.5"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.95, 3.85), (1.0, 4.0)])
def test_percentile_interpolates_between_ranks(share: float, expected: float) -> None:
    assert percentile([3.0, 1.0, 4.0, 2.0], share) == pytest.approx(expected)
    assert percentile([7.0], share) == 7.0


def test_inter_token_latency_leaves_the_first_token_out() -> None:
    assert timing(first_token=3.0, output_tokens=5).inter_token_latency == pytest.approx(0.5)
    assert timing(first_token=3.0, output_tokens=1).inter_token_latency is None


def test_summary_compares_with_stock_of_the_same_round() -> None:
    stock, pruned = summarise(BLOCKS)
    assert (stock.budget, pruned.budget) == (None, 128)
    assert stock.throughput_ratio == stock.first_token_ratio == Estimate(1.0, 0.0)
    # 2 and 4 times the throughput; half and a quarter of the time to first token.
    assert pruned.throughput_ratio == Estimate(3.0, pytest.approx(1.0))
    assert pruned.first_token_ratio == Estimate(0.375, pytest.approx(0.125))


def test_summary_pools_the_requests_of_all_rounds() -> None:
    stock, pruned = summarise(BLOCKS)
    assert stock.requests == 4
    assert stock.requests_per_second == Estimate(0.25, 0.0)
    assert stock.prompt_tokens_per_second == pytest.approx(4 * 600 / 16)
    assert stock.first_token_mean == pytest.approx(2.5)
    assert stock.first_token_p50 == pytest.approx(2.0)
    assert stock.first_token_p95 == pytest.approx(3.7)
    assert pruned.prompt_tokens == 152
    assert pruned.inter_token_mean == pytest.approx(0.5)


def test_summary_orders_budgets_from_large_to_small() -> None:
    blocks = [block(0, budget, 1.0, [1.0]) for budget in (64, None, 576, 128)]
    assert [row.budget for row in summarise(blocks)] == [None, 576, 128, 64]


def test_table_has_a_cell_for_every_column() -> None:
    lines = markdown_table(summarise(BLOCKS)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| stock vLLM | 600 | 0.250 ± 0.000 |")
    assert lines[3].endswith("| 3.00 ± 1.00 | 0.38 ± 0.12 |")


def test_report_holds_the_machine_the_command_and_every_request(tmp_path: Path) -> None:
    machine = Machine("Processor", 2, 24.0, None, "3.11", 0.1)
    rows = summarise(BLOCKS)
    write(tmp_path, settings(tmp_path), BLOCKS, rows, machine, model="tiny", command="run --fast")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["command"] == "run --fast"
    assert result["machine"]["processor"] == "Processor"
    assert result["versions"] == package_versions()
    assert [len(entry["timings"]) for entry in result["blocks"]] == [2, 2, 2, 2]
    assert result["blocks"][1]["timings"][1]["first_token"] == 2.0
    assert result["summary"][1]["throughput_ratio"]["mean"] == 3.0
    table = (tmp_path / "table.md").read_text()
    assert "Processor, 2 cores" in table
    assert "run --fast" in table
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > plot.height


def test_report_tells_how_busy_the_machine_was_otherwise(tmp_path: Path) -> None:
    blocks = [replace(b, other_load=load) for b, load in zip(BLOCKS[:2], [0.1, 0.5], strict=True)]
    machine = Machine.describe()
    write(tmp_path, settings(tmp_path), blocks, summarise(blocks), machine, model="m", command="c")
    assert "0.30 cores busy, at most 0.50 in a block" in (tmp_path / "table.md").read_text()


def test_other_load_leaves_this_process_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 seconds the machine is busy for 13, this process for 12 of them."""
    readings = iter([(0.0, 100.0, 50.0), (10.0, 113.0, 62.0)])
    monkeypatch.setattr(OtherLoad, "_read", staticmethod(lambda: next(readings)))
    assert OtherLoad().cores() == pytest.approx(0.1)


def test_report_of_one_round_can_be_written(tmp_path: Path) -> None:
    blocks = BLOCKS[:2]
    machine = Machine.describe()
    write(tmp_path, settings(tmp_path), blocks, summarise(blocks), machine, model="m", command="c")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["summary"][1]["throughput_ratio"] == {"mean": 2.0, "standard_error": None}


def test_prompt_lengths_pass_when_exactly_the_pruned_tokens_are_missing() -> None:
    check_prompt_lengths([timing(1.0, 152), timing(1.0, 152)], full_length=600, removed=448)


@pytest.mark.parametrize("lengths", [(600, 600), (152, 600), (152, 153), ()])
def test_prompt_lengths_refuse_a_plugin_that_does_not_prune(lengths: tuple[int, ...]) -> None:
    with pytest.raises(MeasurementError, match="should have 152"):
        check_prompt_lengths([timing(1.0, n) for n in lengths], full_length=600, removed=448)


def test_rotation_gives_every_condition_every_place() -> None:
    conditions = [None, 576, 128]
    orders = [rotated(conditions, number) for number in range(3)]
    assert orders[0] == conditions
    assert orders[1] == [576, 128, None]
    assert all(set(places) == set(conditions) for places in zip(*orders, strict=True))
    assert rotated(conditions, 3) == conditions


def test_workload_repeats_no_image_and_no_question() -> None:
    workload = Workload(seed=0)
    prompts = workload.take(40) + workload.take(40)
    assert len({prompt.image for prompt in prompts}) == 80
    assert len({prompt.question for prompt in prompts}) == 80


def test_workload_asks_with_the_same_words() -> None:
    words = {tuple(sorted(prompt.question.split())) for prompt in Workload(seed=1).take(20)}
    assert len(words) == 1


def test_workload_is_the_same_for_the_same_seed() -> None:
    assert Workload(seed=3).take(3) == Workload(seed=3).take(3)
    assert Workload(seed=3).take(3) != Workload(seed=4).take(3)


def test_workload_images_are_photographs_of_one_size() -> None:
    for prompt in Workload(seed=0).take(6):
        encoded = prompt.image.removeprefix("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert (image.size, image.mode, image.format) == (IMAGE_SIZE, "RGB", "JPEG")


def test_server_arguments_of_the_user_come_last(tmp_path: Path) -> None:
    options = arguments_parser().parse_args(["--budgets", "64", "128", "--", "--max-num-seqs=2"])
    assert options.budgets == [64, 128]
    extra = tuple(options.extra_arguments)
    assert settings(tmp_path, extra_arguments=extra).server_arguments[-1] == "--max-num-seqs=2"


@pytest.mark.parametrize(
    "arguments", [["--clip-model", "clip"], ["--budgets", "0"], ["--rounds", "-1"]]
)
def test_command_line_refuses_what_cannot_be_measured(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err

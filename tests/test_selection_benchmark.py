"""The selection benchmark, really run at tiny sizes; no test depends on how long anything took."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.selection import arguments_parser, main
from benchmarks.selection_inputs import GEOMETRIES, Inputs, Size
from benchmarks.selection_report import Spread, markdown, summarise
from benchmarks.selection_rounds import Block, Settings, Time
from vllm_litelvlm.demo.checkpoint import TINY
from vllm_litelvlm.pruning.base import Pruner, Signal
from vllm_litelvlm.pruning.registry import build_pruner, method_names, pruner_class

#: A tower of 16 patches.
GEOMETRY = replace(TINY, image_size=56)
METHODS = [name for name in method_names() if name != "keep-all"]

each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run of every method."""
    output = Path(tmp_path_factory.mktemp("selection"))
    arguments = "--geometry tiny --patches 16 40 --batches 2 1 --rounds 2 --dtype float32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GEOMETRIES, "tiny", GEOMETRY)
        assert main([*arguments.split(), "--device", "cpu", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def table_rows(folder: Path, patches: int) -> dict[str, list[str]]:
    """The cells behind each method's name in the table of so many patches."""
    text = (folder / "table.md").read_text()
    table = text[text.index(f"{patches} patch tokens") :].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in rows}


def inputs() -> Inputs:
    return Inputs(GEOMETRY, torch.float32, torch.device("cpu"), seed=0)


def test_every_registered_method_is_measured_at_every_size(result: dict[str, Any]) -> None:
    sizes = {(16, 1, 2), (16, 2, 2), (40, 1, 4), (40, 2, 4)}
    measured = {
        (time["method"], *block["size"].values(), block["round"])
        for block in result["blocks"]
        for time in block["times"]
        if time["what"] == "selection" and time["calls"]
    }
    wanted = {(m, *size, number) for m in METHODS for size in sizes for number in (0, 1)}
    assert measured == wanted
    assert {tuple(row["size"].values()) for row in result["summary"]} == sizes


def test_table_and_json_agree(folder: Path, result: dict[str, Any]) -> None:
    for patches in (16, 40):
        rows = table_rows(folder, patches)
        assert list(rows) == METHODS
        for row in result["summary"]:
            if row["size"]["patches"] == patches:
                column = {1: 0, 2: 1}[row["size"]["images"]]
                shown = Spread(**row["selection"]).show(1000)
                assert rows[row["method"]][column] == shown


def test_only_the_towers_own_number_of_patches_has_guidance(result: dict[str, Any]) -> None:
    for row in result["summary"]:
        inside = row["method"] == "tome"
        guided = row["size"]["patches"] == 16
        assert (row["guidance"] is not None) == (guided and not inside)
        assert (row["tower_share"] is not None) == guided
        assert (row["tower_inside"] is not None) == (guided and inside)
        reads = pruner_class(row["method"]).reads_text
        assert (row["new_texts"] is not None) == (guided and reads)
    assert [tower["size"]["patches"] for tower in result["towers"]] == [16, 16]


def test_result_holds_what_it_takes_to_repeat_it(folder: Path, result: dict[str, Any]) -> None:
    command = r"(\w+=\S+ )*python -m benchmarks\.selection --geometry tiny"
    assert re.match(command, result["command"])
    assert result["command"] in (folder / "table.md").read_text()
    assert result["settings"]["geometry"]["image_size"] == 56
    assert {"machine", "versions", "finished"} <= set(result)
    assert all(block["other_load"] >= 0 for block in result["blocks"])
    with Image.open(folder / "plot.png") as plot:
        assert plot.width > plot.height


def test_reference_is_measured_beside_the_named_methods(tmp_path: Path) -> None:
    arguments = "--geometry tiny --patches 20 --batches 1 --rounds 1 --methods random"
    assert main([*arguments.split(), "--output", str(tmp_path)]) == 0
    assert list(table_rows(tmp_path, 20)) == ["litelvlm", "random"]


def test_what_takes_too_much_memory_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Size(patches=20, images=1, budget=2)
    needs = {name: build_pruner(name, {}).needs for name in ("litelvlm", "divprune")}
    fits, does_not = (inputs().most_bytes(needs[name], one) for name in needs)
    assert fits < does_not
    arguments = "--geometry tiny --patches 20 --batches 1 --rounds 1 --methods divprune"
    limit = ["--max-gib", str((fits + does_not) / 2 / 2**30)]
    assert main([*arguments.split(), *limit, "--output", str(tmp_path)]) == 0
    assert table_rows(tmp_path, 20)["divprune"] == ["–", "–"]
    assert "divprune at 1 x 20" in (tmp_path / "table.md").read_text()
    assert "divprune" in capsys.readouterr().out


@each_method
def test_made_up_signals_are_those_that_the_method_needs(method: str) -> None:
    pruner, size = build_pruner(method, {}), Size(patches=40, images=2, budget=4)
    signals = inputs().signals(pruner.needs, size)
    assert set(signals.values) == pruner.needs - {Signal.TOWER}
    assert pruner.select(signals, size.budget).indices.shape == (2, pruner.output_count(4))


@each_method
def test_guidance_computes_the_same_shapes_and_types(method: str) -> None:
    needs, size = build_pruner(method, {}).needs - {Signal.TOWER}, Size(16, 2, 2)
    if not needs:
        pytest.skip("works inside the tower")
    computed, made = inputs().guidance(needs, size)(), inputs().signals(needs, size)
    assert described(computed) == described(made.values)
    assert set(computed) == needs


def described(values: Mapping[Signal, torch.Tensor]) -> dict[Signal, tuple[object, object]]:
    return {name: (value.shape, value.dtype) for name, value in values.items()}


def test_open_tower_computes_what_transformers_computes() -> None:
    tower = inputs().tower(Size(patches=16, images=2, budget=2))
    with torch.inference_mode():
        hidden, one_each = tower.embed(), torch.ones(2, 17)
        for layer in range(tower.layers):
            hidden, _ = tower.attend(layer, hidden, one_each)
            hidden = tower.feed_forward(layer, hidden)
        wanted = tower.model(pixel_values=tower.pixel_values).last_hidden_state
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-5)


def settings(*sizes: Size) -> Settings:
    return Settings(
        methods=("litelvlm", "random"),
        sizes=sizes,
        rounds=3,
        dtype="float32",
        device="cpu",
        threads=1,
        geometry=GEOMETRY,
        max_gib=1.0,
        seed=0,
        output=Path("nowhere"),
    )


def test_summary_compares_within_a_round_and_marks_what_is_above_the_bar() -> None:
    """Each round is twice as slow as the one before; the ratios stay."""
    size = Size(patches=16, images=8, budget=2)
    blocks = [
        Block(
            number,
            size,
            0.0,
            (
                Time("selection", "litelvlm", (2.0 * slow, 9.0 * slow, 1.0 * slow)),
                Time("selection", "random", (1.0 * slow,)),
                Time("guidance", "litelvlm", (4.0 * slow,)),
                Time("guidance", "random", (1.0 * slow,)),
                Time("tower", None, (100.0 * slow,)),
                Time("texts", None, (10.0 * slow,)),
            ),
        )
        for number, slow in enumerate((1, 2, 4))
    ]
    summary = summarise(settings(size), blocks)
    reference, random = summary.rows
    assert reference.selection == Spread(4.0, 3.0, 6.0)
    assert random.relative == Spread(0.5, 0.5, 0.5)
    assert reference.tower_share == Spread(*[pytest.approx(0.06)] * 3)
    assert random.tower_share == Spread(*[pytest.approx(0.02)] * 3)
    assert reference.new_texts == Spread(*[pytest.approx(0.16)] * 3)
    assert random.new_texts is None  # reads no text
    assert (reference.above_bar, random.above_bar) == (True, False)
    table = markdown(settings(size), summary)
    assert "| **6.00% (6.00–6.00)** |" in table
    assert "| 2.00% (2.00–2.00) | – |" in table
    assert "| 16.0% (16.0–16.0) |" in table


def test_budget_is_a_ninth_by_default() -> None:
    assert arguments_parser().parse_args([]).budget_share == pytest.approx(1 / 9)
    assert arguments_parser().parse_args(["--budget-share", "0.25"]).budget_share == 0.25
    assert math.isclose(
        arguments_parser().parse_args(["--budget-share", "2/3"]).budget_share, 2 / 3
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods", "litelvm"], "litelvm"),
        (["--methods", "keep-all"], "keep-all"),
        (["--budget-share", "1.5"], "1.5 is not a number above 0 and up to 1"),
        (["--budget-share", "0"], "0 is not a number above 0"),
        (["--budget-share", "1/0"], "1/0 is not a number above 0"),
        (["--budget-share", "nan"], "nan is not a number above 0"),
        (["--batches", "0"], "0 is not a whole number from 1"),
    ],
)
def test_command_line_refuses_what_cannot_be_measured(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


def test_fault_of_a_method_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a third-party method that cannot do without an option."""

    class Demanding(Pruner):
        strength: int

    monkeypatch.setattr("vllm_litelvlm.pruning.registry.pruner_class", lambda name: Demanding)
    assert main(["--geometry", "tiny", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: litelvlm option 'strength'")
    assert "Traceback" not in error

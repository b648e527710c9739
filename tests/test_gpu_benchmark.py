"""The benchmark for a GPU without one: blocks and their order, limits, tables of made-up blocks."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.checkpoints import Source
from benchmarks.conditions import STOCK
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import serving
from benchmarks.gpu.journal import Journal, ServingBlock
from benchmarks.gpu.limit import Limit
from benchmarks.gpu.methods import wait_of
from benchmarks.gpu.report import markdown, write
from benchmarks.gpu.settings import ONE, SERVERS, WAYS, Place, Settings
from benchmarks.machine import Machine
from vllm_litelvlm.demo.server import ServerError
from vllm_litelvlm.pruning.registry import method_names

MACHINE = Machine("Processor", 16, 128.0, "a card", "3.12", 0.1)
QUIET = Console(quiet=True)


def settings(output: Path = Path("results"), **changes: object) -> Settings:
    values: dict[str, object] = {
        "source": Source("model", "clip", "a model", "dummy"),
        "visual_tokens": 576,
        "geometry": "tiny",
        "device": "cuda",
        "api_servers": 6,
        "client_processes": 5,
        "rounds": 2,
        "kv_cache_gb": 26.0,
        "start_seconds": 200.0,
        "seed": 0,
        "output": output,
    }
    return Settings(**{**values, **changes})


def block(place: Place, rate: float = 10.0, **changes: Any) -> ServingBlock:
    """Answers that came at so many a second, each after a tenth of a second."""
    values = {
        "group": place.group.name,
        "round": place.round,
        "condition": place.condition.name,
        "clients": place.clients,
        "seconds": place.requests / rate,
        "first_tokens": (0.1,) * place.requests,
        "prompt_tokens": 600.0,
        "failures": (),
        "busiest": (("engine core", 0.98), ("API server", 0.5)),
        "busiest_client": 0.2,
        "guidance_seconds": 0.0,
        "selection_seconds": 0.0,
        "encoder_batches": 0,
        "encoded_images": 0,
        "other_load": 0.1,
    }
    return ServingBlock(**{**values, **changes})


def test_every_group_is_measured_at_every_load_under_every_condition() -> None:
    chosen = settings()
    places = list(chosen.places())
    told = {(p.group.name, p.round, p.clients, p.condition.name) for p in places}
    assert len(told) == len(places) == 2 * (4 * 5 + 3 * 4 + 2 + 3)
    assert {p.condition.server for p in places} == set(SERVERS)
    assert {p.clients for p in places if p.group.texts == 1} >= {1, 8, 32, 128}
    assert [p.round for p in places] == sorted(p.round for p in places)


def test_groups_begin_with_what_the_others_are_compared_with() -> None:
    several, one, texts, long = settings().groups
    assert [group.conditions[0].server for group in (several, texts, long)] == 3 * [STOCK]
    assert one.conditions[0].options == {"method": "keep-all", "budget": 576}
    assert {condition.server for condition in one.conditions} == {ONE}
    assert (texts.texts, long.output_tokens) == (16, 64)


def test_small_runs_have_few_requests_and_short_answers() -> None:
    places = list(settings(small=True).places())
    assert {p.requests for p in places} == {8}
    assert max(p.clients for p in places) == 8
    assert {p.group.output_tokens for p in places} == {4}


def test_one_server_has_one_front_end_and_the_others_several() -> None:
    counts = {"stock": 6, "litelvlm": 6, ONE: 1}
    for server, number in counts.items():
        assert f"--api-server-count={number}" in settings().server_arguments(server)
    assert settings(extra_arguments=("--seed=3",)).server_arguments(STOCK)[-1] == "--seed=3"
    assert settings().server_environment(STOCK) == {"VLLM_PLUGINS": ""}


def test_limit_is_told_in_seconds_from_its_making() -> None:
    assert Limit(0.0).passed
    assert not Limit(100.0).passed
    assert 99 < Limit(100.0).left <= 100


@contextmanager
def unhealthy(model: str, *, arguments: list[str], **others: object) -> Iterator[Any]:
    """A server that starts only where nothing is compiled."""

    class Starting:
        def wait_until_healthy(self, timeout: float) -> None:
            if WAYS[1][1][0] not in arguments:
                raise ServerError("vllm serve ended with 1")

    yield Starting()


def test_servers_start_in_the_first_way_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "serve", unhealthy)
    journal = Journal.begin(tmp_path)
    with ExitStack() as running:
        servers = serving.start(settings(tmp_path), running, journal, Limit(100.0), QUIET)
    assert set(servers) == set(SERVERS)
    assert journal.way == WAYS[1][0]
    assert journal.troubles == ["Servers did not start, compiled: vllm serve ended with 1"]


def test_servers_that_never_start_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "serve", unhealthy)
    journal = Journal.begin(tmp_path)
    with pytest.raises(ServerError), ExitStack() as running:
        serving.start(settings(device="cpu"), running, journal, Limit(100.0), QUIET)
    assert (journal.way, len(journal.troubles)) == (None, 1)


class _Idle:
    """In the place of client processes, of servers, and of what measures them."""

    def __init__(self, *given: object) -> None:
        pass

    def __enter__(self) -> "_Idle":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def make_images(self, count: int) -> None:
        pass

    def warm_up(self, condition: object) -> None:
        pass

    def block(self, place: Place) -> ServingBlock:
        return block(place)


class _Counted(Limit):
    """Passed when it was asked four times."""

    @property
    def passed(self) -> bool:
        asked.append(0)
        return len(asked) > 3


asked: list[int] = []


def test_no_block_begins_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Clients", "_Run"):
        monkeypatch.setattr(serving, name, _Idle)
    monkeypatch.setattr(serving, "start", lambda *given: {})
    asked.clear()
    journal = Journal.begin(tmp_path)
    serving.measure_serving(settings(tmp_path), journal, _Counted(1.0), QUIET)
    assert journal.troubles == ["Time ran out after 3 of 74 blocks of requests."]
    kinds = [next(iter(json.loads(line))) for line in journal.path.read_text().splitlines()]
    assert kinds == ["serving", "serving", "serving", "trouble"]


def test_table_compares_with_the_first_condition_also_where_it_wins(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path)
    for place in settings().places():
        slow = place.condition.name == "litelvlm, budget 64"
        journal.add_serving_block(block(place, rate=5.0 if slow else 10.0))
    shown = markdown(settings(), journal, MACHINE).splitlines()
    assert shown[0] == "**a card**, a model, bfloat16"
    pruned = next(line for line in shown if "| litelvlm, budget 64 |" in line)
    assert "| 5.0 ± 0.0 | 0.50 ± 0.00 | 100.0 | 100.0 | 100.0 | 1.00 ± 0.00 |" in pruned
    assert "engine core 0.98, API server 0.50" in pruned
    widths = {line.count("|") for line in shown if line.startswith("|")}
    assert len(widths) == 1


def test_table_shows_what_guidance_and_selection_take(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path)
    place = next(iter(settings().places()))
    spent = {"guidance_seconds": 0.01, "selection_seconds": 0.006, "encoded_images": 16}
    journal.add_serving_block(block(place, **spent))
    assert "| 1.00% | – |" in markdown(settings(), journal, MACHINE)


@pytest.mark.parametrize("measured", [0, 5])
def test_everything_is_written_however_little_there_is(tmp_path: Path, measured: int) -> None:
    journal = Journal.begin(tmp_path)
    for _, place in zip(range(measured), settings().places(), strict=False):
        journal.add_serving_block(block(place))
    write(settings(tmp_path), journal, MACHINE, command="the command")
    assert "the command" in (tmp_path / "table.md").read_text()
    assert len(json.loads((tmp_path / "results.json").read_text())["serving"]) == measured
    assert (tmp_path / "plot.png").is_file() == (measured > 0)


def test_all_blocks_can_be_drawn(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path)
    for place in settings().places():
        journal.add_serving_block(block(place))
    write(settings(tmp_path), journal, MACHINE, command="the command")
    with Image.open(tmp_path / "plot.png") as drawn:
        assert drawn.width > drawn.height


@pytest.mark.parametrize("waits", [False, True])
def test_a_call_that_waits_for_the_device_is_found(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> None:
        if waits:
            raise RuntimeError("called a synchronizing CUDA operation\nmore")

    assert wait_of(call) == ("called a synchronizing CUDA operation" if waits else None)
    assert modes == ["error", "default"]


def test_methods_are_measured_though_no_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object) -> None:
        raise ServerError("vllm serve ended with 1")

    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setitem(command._PARTS, "serving", fail)
    small = ["--device", "cpu", "--geometry", "tiny", "--small", "--output", str(tmp_path)]
    assert command.main(small) == 1
    shown = capsys.readouterr().out
    assert "Stopped in serving: vllm serve ended with 1" in shown
    for method in method_names():
        assert f"| {method} |" in shown or method == "keep-all"
    lines = (tmp_path / "blocks.jsonl").read_text().splitlines()
    kinds = [next(iter(json.loads(line))) for line in lines]
    assert kinds == ["methods", "trouble"]


@pytest.mark.parametrize(
    "arguments",
    [["--what", "all of it"], ["--limit", "0"], ["--api-servers", "0"], ["--clip-model", "clip"]],
)
def test_command_line_refuses_what_cannot_be_measured(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err

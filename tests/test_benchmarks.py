"""The benchmark's statistics, report and workloads, without a server."""

import base64
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import rounds
from benchmarks.beside import Beside
from benchmarks.checkpoints import Source
from benchmarks.client import Block, MeasurementError, Timing, check_prompt_lengths
from benchmarks.conditions import (
    BESIDE,
    PLUGIN,
    STOCK,
    STOCK_NAME,
    UNCACHED,
    conditions_of,
)
from benchmarks.engine import Capacity, capacity, metric
from benchmarks.machine import Machine, OtherLoad, command_line, package_versions
from benchmarks.order import balanced
from benchmarks.record import Record
from benchmarks.report import Estimate, markdown_table, percentile, summarise, tables, write
from benchmarks.rounds import places
from benchmarks.settings import Case, Settings
from benchmarks.throughput import arguments_parser, main
from benchmarks.throughput_plot import plot
from benchmarks.workload import IMAGE_SIZE, WORKLOADS, Workload, arrivals, count_images

NEW = Case("new", 1, concurrency=2)
PRUNED_NAME = "litelvlm, budget 128"


def timing(
    first_token: float, prompt_tokens: int = 600, output_tokens: int = 5, **others: int
) -> Timing:
    """A request whose tokens come half a second apart."""
    last_token = first_token + 0.5 * (output_tokens - 1)
    return Timing(0.0, first_token, last_token, prompt_tokens, output_tokens, **others)


def block(
    round: int,
    condition: str,
    seconds: float,
    first_tokens: Sequence[float],
    case: Case = NEW,
) -> Block:
    length = 600 if condition == STOCK_NAME else 152
    timings = tuple(timing(first, length) for first in first_tokens)
    return Block(round, case, condition, seconds, timings)


#: The plugin at 128 tokens is 2 and then 4 times as fast as stock.
BLOCKS = [
    block(0, STOCK_NAME, 8.0, [2.0, 4.0]),
    block(0, PRUNED_NAME, 4.0, [1.0, 2.0]),
    block(1, PRUNED_NAME, 2.0, [0.5, 0.5]),
    block(1, STOCK_NAME, 8.0, [2.0, 2.0]),
]


def settings(output: Path = Path("results"), **changes: object) -> Settings:
    values: dict[str, object] = {
        "source": Source("model", None, "a model"),
        "visual_tokens": 576,
        "workloads": ("new",),
        "methods": ("litelvlm",),
        "budgets": (128,),
        "expressions": (2, 4),
        "turns": 3,
        "images_per_request": 2,
        "requests": 2,
        "rounds": 2,
        "output_tokens": 5,
        "concurrency": (2,),
        "rates": (),
        "seed": 0,
        "output": output,
    }
    return Settings(**{**values, **changes})


def record_of(blocks: Sequence[Block], folder: Path) -> Record:
    record = Record.begin(folder, {})
    record.add_sitting({STOCK: Capacity(2048, 10.0, "its log")})
    for one in blocks:
        record.add(one)
    return record


def names(workload: str, *methods: str) -> list[str]:
    return [condition.name for condition in conditions_of(workload, methods, (64,))]


@pytest.mark.parametrize("given", [("--dtype", "float32"), ("--dtype=float32", "--block-size=32")])
def test_report_names_the_dtype_that_servers_compute_in(given: tuple[str, ...]) -> None:
    assert settings().dtype == "bfloat16"
    assert settings(extra_arguments=given).dtype == "float32"


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
    stock, pruned = summarise(settings(), BLOCKS)
    assert (stock.condition, pruned.condition) == (STOCK_NAME, PRUNED_NAME)
    assert stock.throughput_ratio == stock.first_token_ratio == Estimate(1.0, 0.0)
    # 2 and 4 times the throughput; half and a quarter of the time to first token.
    assert pruned.throughput_ratio == Estimate(3.0, pytest.approx(1.0))
    assert pruned.first_token_ratio == Estimate(0.375, pytest.approx(0.125))


def test_summary_compares_with_stock_under_the_same_load() -> None:
    cases = [NEW, Case("new", 1, concurrency=8), Case("new", 1, None, rate=0.5)]
    blocks = []
    for speed, case in enumerate(cases, 1):
        blocks += [block(0, STOCK_NAME, 8.0 / speed, [2.0], case)]
        blocks += [block(0, PRUNED_NAME, 4.0, [2.0 * speed], case)]
    rows = summarise(settings(concurrency=(2, 8), rates=(0.5,)), blocks)
    assert [row.case for row in rows[::2]] == cases
    assert [row.throughput_ratio.mean for row in rows[1::2]] == pytest.approx([2.0, 1.0, 2 / 3])
    assert [row.first_token_ratio.mean for row in rows[1::2]] == [1.0, 2.0, 3.0]


def test_summary_pools_the_requests_of_all_rounds() -> None:
    stock, pruned = summarise(settings(), BLOCKS)
    assert stock.requests == 4
    assert stock.requests_per_second == Estimate(0.25, 0.0)
    assert stock.prompt_tokens_per_second == pytest.approx(4 * 600 / 16)
    assert stock.first_token_mean == pytest.approx(2.5)
    assert stock.first_token_p50 == pytest.approx(2.0)
    assert stock.first_token_p95 == pytest.approx(3.7)
    assert pruned.prompt_tokens == 152
    assert pruned.inter_token_mean == pytest.approx(0.5)


def test_summary_tells_cached_tokens_only_where_the_server_does() -> None:
    timings = (timing(1.0, cached_tokens=0), timing(1.0, cached_tokens=512))
    stock, pruned = summarise(settings(), [replace(BLOCKS[0], timings=timings), BLOCKS[1]])
    assert (stock.cached_tokens, stock.computed_tokens) == (256, 344)
    assert (pruned.cached_tokens, pruned.computed_tokens) == (None, None)


def test_summary_averages_each_turn_of_a_chat() -> None:
    chat = Case("chat", 3, concurrency=2)
    timings = tuple(
        timing(float(turn + extra), turn=turn) for turn in (0, 1, 2) for extra in (1, 3)
    )
    blocks = [
        replace(block(0, condition.name, 4.0, [], chat), timings=timings)
        for condition in settings().conditions("chat")
    ]
    rows = summarise(settings(workloads=("chat",)), blocks)
    assert rows[0].first_token_by_turn == (2.0, 3.0, 4.0)
    assert "| stock vLLM | 2.00 | 3.00 | 4.00 |" in tables(rows)


def test_table_has_a_cell_for_every_column() -> None:
    lines = markdown_table(summarise(settings(), BLOCKS)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| stock vLLM | 600 | – | – | 0.250 ± 0.000 |")
    assert lines[3].endswith("| 3.00 ± 1.00 | 0.38 ± 0.12 | 0.00 |")


def test_table_names_each_load_before_its_rows() -> None:
    varied = settings(concurrency=(2, 8), rates=(0.5,))
    blocks = [
        block(0, condition.name, 1.0, [1.0], case)
        for case in varied.cases
        for condition in varied.conditions("new")
    ]
    lines = markdown_table(summarise(varied, blocks)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    first_cells = [line.split("|")[1].strip() for line in lines]
    assert first_cells[2:] == ["2 at a time", "", "8 at a time", "", "0.5 requests/s", ""]


def test_report_holds_the_machine_the_command_and_every_request(tmp_path: Path) -> None:
    machine = Machine("Processor", 2, 24.0, None, "3.11", 0.1)
    chosen = settings(tmp_path)
    record = record_of(BLOCKS, tmp_path)
    rows = summarise(chosen, BLOCKS)
    write(chosen, record, rows, machine, model="tiny", command="run --fast")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["command"] == "run --fast"
    assert result["machine"]["processor"] == "Processor"
    assert result["versions"] == package_versions()
    assert result["capacities"][STOCK]["requests"] == 10.0
    assert [len(entry["timings"]) for entry in result["blocks"]] == [2, 2, 2, 2]
    assert result["blocks"][1]["timings"][1]["first_token"] == 2.0
    assert result["summary"][1]["throughput_ratio"]["mean"] == 3.0
    table = (tmp_path / "table.md").read_text()
    assert "Processor, 2 cores" in table
    assert "run --fast" in table
    assert "stock 10.00 requests of 2,048 tokens (its log)" in table
    assert "no cache is reset" in table


def test_report_tells_how_busy_the_machine_was_otherwise(tmp_path: Path) -> None:
    blocks = [replace(b, other_load=load) for b, load in zip(BLOCKS[:2], [0.1, 0.5], strict=True)]
    chosen, record = settings(tmp_path), record_of(blocks, tmp_path)
    rows = summarise(chosen, blocks)
    write(chosen, record, rows, Machine.describe(), model="m", command="c")
    assert "0.30 cores busy, at most 0.50 in a block" in (tmp_path / "table.md").read_text()


def test_report_of_one_round_can_be_written(tmp_path: Path) -> None:
    chosen, record = settings(tmp_path), record_of(BLOCKS[:2], tmp_path)
    rows = summarise(chosen, BLOCKS[:2])
    write(chosen, record, rows, Machine.describe(), model="m", command="c")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["summary"][1]["throughput_ratio"] == {"mean": 2.0, "standard_error": None}


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("rates", [(), (0.5, 1.0)])
def test_every_workload_can_be_drawn(
    workload: str, rates: tuple[float, ...], tmp_path: Path
) -> None:
    chosen = settings(workloads=(workload,), rates=rates, methods=("litelvlm", "random"))
    blocks = [
        block(0, condition.name, 1.0, [1.0], case)
        for case in chosen.cases
        for condition in chosen.conditions(workload)
    ]
    plot(summarise(chosen, blocks), tmp_path / "plot.png", "title")
    with Image.open(tmp_path / "plot.png") as drawn:
        assert drawn.width > drawn.height


def test_other_load_leaves_this_process_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 seconds the machine is busy for 13, this process for 12 of them."""
    readings = iter([(0.0, 100.0, 50.0), (10.0, 113.0, 62.0)])
    monkeypatch.setattr(OtherLoad, "_read", staticmethod(lambda: next(readings)))
    assert OtherLoad().cores() == pytest.approx(0.1)


def test_prompt_lengths_pass_when_exactly_the_pruned_tokens_are_missing() -> None:
    check_prompt_lengths([timing(1.0, 152), timing(1.0, 200)], [600, 1096], removed=[448, 896])


def test_commands_name_the_variables_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me"})
    assert command_line("benchmarks.soak", ["--images", "a b"]) == (
        "python -m benchmarks.soak --images 'a b'"
    )
    preloaded = {"LD_PRELOAD": "libtcmalloc_minimal.so.4", "VLLM_CPU_KVCACHE_SPACE": "1"}
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me", **preloaded})
    assert command_line("benchmarks.soak", []) == (
        "LD_PRELOAD=libtcmalloc_minimal.so.4 VLLM_CPU_KVCACHE_SPACE=1 python -m benchmarks.soak"
    )


@pytest.mark.parametrize("lengths", [(600, 600), (152, 600), (152, 153)])
def test_prompt_lengths_refuse_a_plugin_that_does_not_prune(lengths: tuple[int, ...]) -> None:
    with pytest.raises(MeasurementError, match="should have 152"):
        check_prompt_lengths([timing(1.0, n) for n in lengths], [600, 600], removed=[448, 448])


def test_prompt_lengths_may_grow_after_the_first_turn_up_to_the_whole() -> None:
    def check(first: int, second: int) -> None:
        timings = [timing(1.0, first), timing(1.0, second, turn=1)]
        check_prompt_lengths(timings, [600, 650], removed=[448, 448], grows=True)

    for length in (202, 230, 650):
        check(152, length)
    for first, second in ((153, 202), (152, 201), (152, 651)):
        with pytest.raises(MeasurementError, match="should have"):
            check(first, second)


def test_prompt_lengths_refuse_a_block_without_requests() -> None:
    with pytest.raises(MeasurementError, match="No request"):
        check_prompt_lengths([], full=[], removed=[])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_every_item_has_every_place_and_follows_every_other_equally_often(count: int) -> None:
    items = list("abcdef"[:count])
    rounds = count if count % 2 == 0 else 2 * count
    orders = [balanced(items, number) for number in range(rounds)]
    assert orders[0][0] == "a"
    assert all(sorted(order) == items for order in orders)
    had = Counter(place for order in orders for place in enumerate(order))
    assert len(had) == count**2
    assert set(had.values()) == {rounds // count}
    followed = Counter(pair for order in orders for pair in pairwise(order))
    assert len(followed) == count * (count - 1)
    assert len(set(followed.values())) <= 1
    assert balanced(items, 2 * count) == orders[0]


def test_every_round_measures_every_case_under_every_condition() -> None:
    chosen = settings(workloads=("expressions", "chat"), rates=(0.5,), rounds=3, focus=(0.25,))
    measured = [(p.round, p.case, p.condition.name) for p in places(chosen)]
    assert len(set(measured)) == len(measured)
    # 2 numbers of texts and 1 number of turns, with 5 conditions; a closed loop and a rate.
    assert len(measured) == 3 * 2 * (2 + 1) * 5


def test_conditions_begin_with_stock_which_gets_no_options() -> None:
    conversation = Workload(0).take(1)[0]
    for workload in WORKLOADS:
        stock, *others = conditions_of(workload, ("litelvlm",), (64,))
        assert (stock.name, stock.server, stock.budget) == (STOCK_NAME, STOCK, None)
        assert stock.request_options(conversation, 0) is None
        assert {condition.budget for condition in others} == {64}
        assert STOCK not in {condition.server for condition in others}


def test_positions_are_compared_on_a_server_that_was_started_for_original_ones() -> None:
    compact, original = conditions_of("new", ("litelvlm",), (64,), ("compact", "original"))[1:]
    assert compact.name == "litelvlm, budget 64, compact positions"
    assert original.name == "litelvlm, budget 64, original positions"
    assert (compact.options or {})["positions"] == "compact"
    assert (original.options or {})["positions"] == "original"
    placing = settings(positions=("compact", "original"))
    assert placing.server_options(PLUGIN)["positions"] == "original"
    assert "positions" not in settings().server_options(PLUGIN)
    assert "positions" not in (conditions_of("new", ("litelvlm",), (64,))[1].options or {})


def test_conditions_name_what_differs() -> None:
    plain = [STOCK_NAME, "litelvlm, budget 64"]
    assert names("new", "litelvlm") == names("images", "litelvlm") == plain
    uncached = f"{plain[1]}, without caches"
    assert names("expressions", "litelvlm") == [*plain, f"{plain[1]}, texts named", uncached]
    for chats in ("chat", "gallery"):
        assert names(chats, "litelvlm") == [*plain, f"{plain[1]}, guide first", uncached]


def test_focus_is_a_condition_of_its_own_where_several_texts_are_about_an_image() -> None:
    def tried(workload: str, method: str) -> list[object]:
        found = conditions_of(workload, (method,), (64,), focus=(0.25, 0.5))
        return [(one.name, one.options["focus"]) for one in found[1:] if one.grows]

    for workload in ("expressions", "chat", "gallery"):
        named = [(f"fovea, budget 64, focus {share}", share) for share in (0.25, 0.5)]
        assert tried(workload, "fovea") == named
        assert tried(workload, "trim") == tried(workload, "visionzip") == []
    assert tried("new", "fovea") == tried("images", "fovea") == []


def test_another_checkout_answers_by_its_own_defaults(tmp_path: Path) -> None:
    other = Beside(str(tmp_path), "abc", ("litelvlm",))
    chosen = settings(
        workloads=("new", "chat"),
        methods=("litelvlm", "fovea"),
        positions=("original",),
        beside=other,
    )
    [condition] = [one for one in chosen.conditions("chat") if one.server == BESIDE]
    assert condition.name == "litelvlm, budget 128, beside"
    assert condition.options == {"method": "litelvlm", "budget": 128}
    assert BESIDE not in {one.server for one in chosen.conditions("new")}
    assert chosen.servers == [STOCK, PLUGIN, BESIDE, UNCACHED]
    assert chosen.server_options(BESIDE) == {}
    assert chosen.identity()["beside"]["commit"] == "abc"


def test_another_checkout_is_imported_before_the_working_directory(tmp_path: Path) -> None:
    other = checkout(tmp_path)
    command = [sys.executable, "-m", "vllm_litelvlm"]
    environment = {**os.environ, **Beside.at(str(other)).environment}
    said = subprocess.check_output(command, env=environment, text=True)
    assert said.strip() == str(other / "vllm_litelvlm" / "__main__.py")


def test_another_checkout_is_known_by_its_commit_and_methods(tmp_path: Path) -> None:
    other = checkout(tmp_path)
    assert Beside.at(str(other)) == Beside(str(other), "unknown", ("litelvlm", "other"))
    git = ["git", "-C", str(other), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert Beside.at(str(other)).commit == head
    (other / "vllm_litelvlm" / "__init__.py").write_text("changed = True")
    assert Beside.at(str(other)).commit == f"{head}-dirty"


def checkout(folder: Path) -> Path:
    """A package of the right name that has two methods."""
    package = folder / "checkout" / "vllm_litelvlm"
    (package / "pruning").mkdir(parents=True)
    registry = "def method_names(): return 'litelvlm', 'other'"
    for name, text in {
        "__init__": "",
        "__main__": "print(__file__)",
        "pruning/__init__": "",
        "pruning/registry": registry,
    }.items():
        (package / f"{name}.py").write_text(text)
    return package.parent


def test_methods_that_read_no_text_have_one_condition_a_budget() -> None:
    for workload in WORKLOADS:
        assert names(workload, "visionzip") == [STOCK_NAME, "visionzip, budget 64"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_random_is_called_the_ideal(workload: str) -> None:
    assert all("(ideal: no scoring)" in name for name in names(workload, "random")[1:])


def test_named_texts_are_all_that_are_asked_about_the_image() -> None:
    default, named, uncached = conditions_of("expressions", ("litelvlm",), (64,))[1:]
    conversation = Workload(0).take(4, "expressions", 4)[1]
    plain = {"method": "litelvlm", "budget": 64}
    assert default.request_options(conversation, 0) == plain
    assert named.request_options(conversation, 0) == {**plain, "texts": list(conversation.texts)}
    assert uncached.request_options(conversation, 0) == plain
    assert [c.server for c in (default, named, uncached)] == [PLUGIN, PLUGIN, UNCACHED]


def test_options_of_a_chat_are_sent_with_every_turn() -> None:
    conversation = Workload(0).take(3, "chat", 3)[0]
    plain = {"method": "litelvlm", "budget": 64}
    expected = [plain, {**plain, "focus": 0.5}, {**plain, "guide": "first"}, plain]
    found = conditions_of("chat", ("litelvlm",), (64,), focus=(0.5,))[1:]
    for condition, options in zip(found, expected, strict=True):
        sent = [condition.request_options(conversation, turn) for turn in range(3)]
        assert sent == 3 * [options]


def test_random_draws_anew_exactly_where_tokens_are_not_shared() -> None:
    changing, shared = conditions_of("chat", ("random",), (64,))[1:]
    conversation = Workload(0).take(3, "chat", 3)[0]

    def seeds(condition):
        found = [condition.request_options(conversation, turn) for turn in range(3)]
        return {options.get("seed") for options in found}

    assert len(seeds(changing)) == 3
    assert seeds(shared) == {None}


def test_servers_are_those_that_some_condition_needs() -> None:
    assert settings().servers == [STOCK, PLUGIN]
    for workload in ("chat", "expressions", "gallery"):
        assert settings(workloads=(workload,)).servers == [STOCK, PLUGIN, UNCACHED]
    assert settings(workloads=("expressions",), methods=("tome",)).servers == [STOCK, PLUGIN]


def test_the_server_without_caches_has_none() -> None:
    chosen = settings(workloads=("expressions",), expressions=(2, 100))
    assert chosen.server_options(PLUGIN) == {"max_texts": 100}
    assert chosen.server_options(UNCACHED) == {
        "feature_cache_gb": 0,
        "pixel_cache_gb": 0,
        "text_cache": 0,
        "max_texts": 100,
    }


def test_servers_take_the_longest_request_and_as_many_images_as_it_has() -> None:
    arguments = settings(workloads=("images",), images_per_request=5).server_arguments
    assert '--limit-mm-per-prompt={"image": 5}' in arguments
    assert "--max-model-len=3072" in arguments
    assert "--max-model-len=2048" in settings().server_arguments
    # Six turns with as many images fit LLaVA-1.5.
    arguments = settings(workloads=("gallery",), turns=6, output_tokens=8).server_arguments
    assert '--limit-mm-per-prompt={"image": 6}' in arguments
    assert "--max-model-len=4096" in arguments


@pytest.mark.parametrize("kv_cache_gb", [None, 1.5])
def test_servers_start_at_the_same_time_where_their_kv_cache_is_given(
    kv_cache_gb: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Starting:
        def __init__(self, log: Path) -> None:
            self.name = log.stem

        def wait_until_healthy(self) -> None:
            events.append(f"{self.name} up")

    @contextmanager
    def serve(model: str, *, log: Path, wait: bool, **others: object) -> Iterator[Starting]:
        server = Starting(log)
        events.append(f"{server.name} begins")
        if wait:
            server.wait_until_healthy()
        yield server

    monkeypatch.setattr(rounds, "serve", serve)
    with ExitStack() as running:
        chosen = settings(tmp_path, kv_cache_gb=kv_cache_gb)
        servers = rounds.start(chosen, running, Console(quiet=True))
    assert list(servers) == [STOCK, PLUGIN]
    one, other = ([f"{name} begins", f"{name} up"] for name in (STOCK, PLUGIN))
    together = [one[0], other[0], one[1], other[1]]
    assert events == ([*one, *other] if kv_cache_gb is None else together)


def test_servers_get_the_kv_cache_that_was_asked_for() -> None:
    sized = settings(kv_cache_gb=1.5).server_arguments
    assert "--kv-cache-memory-bytes=1610612736" in sized
    assert not any("kv-cache" in argument for argument in settings().server_arguments)


@pytest.mark.parametrize(
    ("kind", "size", "requests", "shape"),
    [
        ("new", 1, 3, (3, 1, 1, 1)),
        ("expressions", 4, 6, (8, 1, 1, 4)),
        ("chat", 4, 6, (2, 1, 4, 4)),
        ("gallery", 4, 6, (2, 4, 4, 4)),
        ("images", 3, 2, (2, 3, 1, 1)),
    ],
)
def test_workload_gives_whole_conversations(
    kind: str, size: int, requests: int, shape: tuple[int, int, int, int]
) -> None:
    taken = Workload(seed=0).take(requests, kind, size)
    count, images, turns, texts = shape
    assert len(taken) == count
    assert {(len(c.images), len(c.turns), len(c.texts)) for c in taken} == {(images, turns, texts)}
    assert Case(kind, size, 1).requests(requests) == count * turns


def test_expressions_about_an_image_come_one_after_another() -> None:
    taken = Workload(seed=0).take(8, "expressions", 4)
    assert [len({c.image for c in taken[start : start + 4]}) for start in (0, 4)] == [1, 1]
    assert taken[0].image != taken[4].image
    assert [turn for c in taken[:4] for turn in c.turns] == list(taken[0].texts)


@pytest.mark.parametrize(("kind", "size"), [("new", 1), ("expressions", 4), ("chat", 4)])
def test_workload_repeats_no_image_and_no_text(kind: str, size: int) -> None:
    workload = Workload(seed=0)
    taken = workload.take(20, kind, size) + workload.take(20, kind, size)
    turns = [turn for c in taken for turn in c.turns]
    assert len(turns) == len(set(turns)) == 40
    assert len({c.images for c in taken}) == 40 / size


def test_workload_asks_with_the_same_words() -> None:
    words = {tuple(sorted(c.turns[0].split())) for c in Workload(seed=1).take(20)}
    assert len(words) == 1


@pytest.mark.parametrize("kind", WORKLOADS)
def test_workload_is_the_same_for_the_same_seed(kind: str) -> None:
    assert Workload(seed=3).take(3, kind, 2) == Workload(seed=3).take(3, kind, 2)
    assert Workload(seed=3).take(3, kind, 2) != Workload(seed=4).take(3, kind, 2)


def test_workload_images_are_photographs_of_one_size() -> None:
    for conversation in Workload(seed=0).take(6):
        encoded = conversation.image.removeprefix("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert (image.size, image.mode, image.format) == (IMAGE_SIZE, "RGB", "JPEG")


def test_turns_carry_the_whole_conversation_with_its_answers() -> None:
    conversation = Workload(seed=0).take(3, "chat", 3)[0]
    messages = conversation.messages(["one", "two"])
    assert [message["role"] for message in messages] == 2 * ["user", "assistant"] + ["user"]
    assert [message["content"] for message in messages[1::2]] == ["one", "two"]
    assert [message["content"][-1]["text"] for message in messages[::2]] == list(conversation.turns)
    images = [part for m in messages[::2] for part in m["content"] if part["type"] == "image_url"]
    assert images == [{"type": "image_url", "image_url": {"url": conversation.image}}]
    assert conversation.messages([]) == messages[:1]


def test_turns_of_a_gallery_bring_an_image_each() -> None:
    conversation = Workload(seed=0).take(3, "gallery", 3)[0]
    for answers in ([], ["one"], ["one", "two"]):
        messages = conversation.messages(answers)
        brought = [m["content"][0]["image_url"]["url"] for m in messages[::2]]
        assert brought == list(conversation.images[: len(answers) + 1])
        assert count_images(messages) == len(answers) + 1


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = arrivals(4.0, 2000, "seed")
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert min(gaps) > 0
    assert times[-1] / 2000 == pytest.approx(0.25, rel=0.1)
    # An exponential distribution's standard deviation is its mean.
    assert math.sqrt(sum((gap - 0.25) ** 2 for gap in gaps) / 2000) == pytest.approx(0.25, rel=0.1)
    assert arrivals(4.0, 2000, "seed") == times != arrivals(4.0, 2000, "another")


EXPOSITION = """# HELP vllm:kv_cache_usage_perc KV-cache usage.
vllm:kv_cache_usage_perc{engine="0",model_name="model"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="model"} 0.5
vllm:cache_config_info{block_size="128",num_gpu_blocks="32",engine="0"} 1.0
plain_total 3e+02
"""


def test_metrics_are_summed_over_labels() -> None:
    assert metric(EXPOSITION, "vllm:kv_cache_usage_perc") == 0.75
    assert metric(EXPOSITION, "plain_total") == 300
    assert metric(EXPOSITION, "absent_total") == 0


def test_capacity_is_what_the_engine_logged() -> None:
    log = "KV cache size: 58,240 tokens, Maximum concurrency for 2,048 tokens per request: 28.44x"
    assert capacity(log, EXPOSITION, 2048) == Capacity(2048, 28.44, "the engine's own log")


def test_capacity_is_computed_and_said_to_be_where_nothing_was_logged() -> None:
    found = capacity("INFO nothing", EXPOSITION, 2048)
    assert (found.tokens, found.requests) == (2048, 2.0)
    assert str(found) == "2.00 requests of 2,048 tokens (computed from vllm:cache_config_info)"


def test_record_gives_back_every_block_that_was_added(tmp_path: Path) -> None:
    identity = settings(tmp_path).identity()
    written = Record.begin(tmp_path, identity)
    written.add_sitting({STOCK: Capacity(2048, 10.0, "log")})
    for one in BLOCKS[:3]:
        written.add(replace(one, timings=(timing(1.0, cached_tokens=128, turn=2),)))
    found = Record.resume(tmp_path, identity)
    assert found == written
    assert found.has(1, NEW, PRUNED_NAME)
    assert not found.has(1, NEW, STOCK_NAME)
    found.add_sitting({})
    assert Record.resume(tmp_path, identity).sittings == 2


def test_record_drops_a_line_that_was_not_finished(tmp_path: Path) -> None:
    record = record_of(BLOCKS[:2], tmp_path)
    whole = record.path.read_text()
    record.path.write_text(whole + '{"block": {"round": 1, "ca')
    resumed = Record.resume(tmp_path, {})
    assert resumed.blocks == BLOCKS[:2]
    resumed.add(BLOCKS[2])
    assert Record.resume(tmp_path, {}).blocks == BLOCKS[:3]


def test_record_refuses_other_settings(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    Record.begin(tmp_path, chosen.identity())
    changed = replace(chosen, seed=7, concurrency=(4,))
    with pytest.raises(MeasurementError, match=r"concurrency was \[2\] and is \[4\]; seed was 0"):
        Record.resume(tmp_path, changed.identity())
    elsewhere = replace(chosen, output=tmp_path / "elsewhere")
    assert Record.resume(tmp_path, elsewhere.identity()).blocks == []


def test_record_refuses_a_folder_without_blocks(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="leave --resume out"):
        Record.resume(tmp_path, {})


def test_server_arguments_of_the_user_come_last() -> None:
    options = arguments_parser().parse_args(["--budgets", "64", "128", "--", "--max-num-seqs=2"])
    assert options.budgets == [64, 128]
    extra = tuple(options.extra_arguments)
    assert settings(extra_arguments=extra).server_arguments[-1] == "--max-num-seqs=2"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--clip-model", "clip"],
        ["--budgets", "0"],
        ["--rounds", "-1"],
        ["--rates", "0"],
        ["--rates", "inf"],
        ["--kv-cache-gb", "0"],
        ["--workload", "video"],
        ["--methods", "keep-all"],
        ["--methods", "fastv"],
        ["--focus", "0"],
        ["--focus", "1"],
        ["--beside", "benchmarks"],
    ],
)
def test_command_line_refuses_what_cannot_be_measured(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err

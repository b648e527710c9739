"""The host benchmark, really run at a tiny size; no test depends on how long anything took."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import checkpoints
from benchmarks.beside import Beside
from benchmarks.checkpoints import Source
from benchmarks.conditions import BESIDE, PLUGIN, STOCK, STOCK_NAME, Condition
from benchmarks.host import asleep, launches, rounds
from benchmarks.host.__main__ import main
from benchmarks.host.report import markdown, notes, summarise
from benchmarks.host.rounds import Block, places
from benchmarks.host.settings import Front, Settings
from benchmarks.jobs import Job
from benchmarks.load import Answer, Clients, Load, LoadError
from benchmarks.machine import Machine
from benchmarks.processes import API_SERVER, ENGINE_CORE, REST, WORKER, Process, Usage, by_role
from benchmarks.tables import table
from vllm_litelvlm.errors import OptionsError

ARGUMENTS = [
    *("--what", "processor", "--api-servers", "1", "--texts", "1", "2", "--requests", "4"),
    *("--rounds", "1", "--clients", "2", "--output-tokens", "2"),
]


def settings(**changes: object) -> Settings:
    values: dict[str, object] = {
        "source": Source("model", "clip", "a model"),
        "visual_tokens": 576,
        "fronts": (Front(1), Front(2)),
        "texts": (1, 16),
        "methods": ("litelvlm",),
        "budget": 64,
        "requests": 10,
        "rounds": 2,
        "clients": 4,
        "client_processes": 2,
        "output_tokens": 4,
        "kv_cache_gb": 0.5,
        "seed": 0,
        "output": Path("results"),
    }
    return Settings(**{**values, **changes})


def block(round: int, condition: str, used: float, **changes: Any) -> Block:
    """Ten requests for which the API server used ``used`` seconds and the worker half of it."""
    values = {
        "round": round,
        "front": "1 API server",
        "texts": 1,
        "condition": condition,
        "requests": 10,
        "seconds": 2.0,
        "prompt_tokens": 600,
        "processor": {API_SERVER: used, ENGINE_CORE: 0.0, WORKER: used / 2, REST: 0.1},
        "busiest_client": 0.2,
        "other_load": 0.1,
    }
    return Block(**{**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run with two real servers."""
    output = Path(tmp_path_factory.mktemp("host"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CHECKPOINTS", tmp_path_factory.mktemp("checkpoints"))
        assert main([*ARGUMENTS, "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["processor"]


def test_every_server_is_measured_with_new_and_with_repeated_images(result: dict[str, Any]) -> None:
    measured = {(row["texts"], row["condition"]) for row in result["summary"]}
    assert measured == set(product((1, 2), (STOCK_NAME, "litelvlm")))
    assert all(block["requests"] == 4 for block in result["blocks"])


def test_prompts_are_shorter_by_what_was_pruned(result: dict[str, Any]) -> None:
    lengths = {row["condition"]: row["prompt_tokens"] for row in result["summary"]}
    assert lengths[STOCK_NAME] - lengths["litelvlm"] == 576 - 64


def test_api_server_engine_core_and_worker_are_told_apart(result: dict[str, Any]) -> None:
    # The kernel counts in ticks of 10 ms, and an engine core may need less for one block.
    used = sum((Counter(block["processor"]) for block in result["blocks"]), Counter())
    assert min(used[API_SERVER], used[ENGINE_CORE], used[WORKER]) > 0
    assert used[REST] < used[API_SERVER]
    assert all(0 < block["busiest_client"] <= 2 for block in result["blocks"])


def test_tables_and_plot_are_written(folder: Path) -> None:
    shown = (folder / "table.md").read_text()
    assert "| 1 API server | 1 | stock vLLM |" in shown
    assert "litelvlm ÷ stock vLLM" in shown
    assert "python -m benchmarks.host --what processor" in shown
    with Image.open(folder / "plot.png") as drawn:
        assert drawn.width > drawn.height


def test_launches_are_counted_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = launches.measure([launches.Form("random")], budgets=(64,), images=(1,))
    monkeypatch.setattr(launches, "measure", lambda: counts)
    assert main(["--what", "launches", "--output", str(tmp_path)]) == 0
    assert f"| random | {counts[0].guidance} + {counts[0].selection} |" in capsys.readouterr().out
    [written] = json.loads((tmp_path / "results.json").read_text())["launches"]
    assert written["form"]["method"] == "random"


def test_engine_core_and_worker_of_every_server_sleep_where_they_wait(folder: Path) -> None:
    logs = list(folder.glob("*.log"))
    assert len(logs) == 2
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        asleep = [line for line in lines if "sleeps where it waits for another" in line]
        processes = [line.strip("(").partition(" ")[0].partition("-")[0] for line in asleep]
        assert sorted(processes) == ["EngineCore", "VllmWorker"]


def test_sleeping_is_a_plugin_of_vllm_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = asleep.install(tmp_path / "asleep")
    points = [p for d in distributions(path=[str(installed)]) for p in d.entry_points]
    assert [(p.group, p.value) for p in points] == [
        ("vllm.general_plugins", "litelvlm_asleep:register")
    ]
    monkeypatch.setenv("PYTHONPATH", "mine")
    stock = asleep.environment(installed, {"VLLM_PLUGINS": ""})
    assert stock == {"VLLM_PLUGINS": "litelvlm_asleep", "PYTHONPATH": f"mine:{installed}"}
    other = asleep.environment(installed, {"VLLM_PLUGINS": "a", "PYTHONPATH": "other"})
    assert other == {"VLLM_PLUGINS": "a,litelvlm_asleep", "PYTHONPATH": f"other:{installed}"}


def test_a_round_has_every_number_of_texts_and_every_condition_once() -> None:
    chosen = settings(beside=Beside("path", "abc", ("litelvlm",)))
    assert chosen.servers == [STOCK, PLUGIN, BESIDE]
    found = [(p.round, p.texts, p.condition.name) for p in places(chosen)]
    names = [STOCK_NAME, "litelvlm", "litelvlm, beside"]
    assert sorted(found) == sorted(product(range(2), (1, 16), names))


def test_a_plugin_that_does_not_prune_is_refused() -> None:
    stock, pruned = settings().conditions
    run = rounds._Run(settings(), Front(1), clients=None, servers={}, whole=600)

    def check(condition: Condition, *lengths: int) -> None:
        answers = tuple(Answer(0.1, 0.2, length) for length in lengths)
        run.check(condition, Load(1.0, answers, (), 0.1))

    check(stock, 600, 600)
    check(pruned, 88, 88)
    for condition, length in ((stock, 88), (pruned, 600)):
        with pytest.raises(LoadError, match=f"the server counted \\[{length}\\]"):
            check(condition, length)


def test_a_budget_above_an_images_tokens_is_refused() -> None:
    settings(budget=576).check_budget()
    with pytest.raises(OptionsError, match="--budget 577 is too many"):
        settings(budget=577).check_budget()


def test_front_ends_are_arguments_of_the_server() -> None:
    assert Front(1).arguments == ["--api-server-count=1"]
    front = Front(1, 4)
    assert str(front) == "1 API server, 4 renderer workers"
    assert "--renderer-num-workers=4" in settings().server_arguments(front)
    extra = settings(extra_arguments=("--dtype=float32",)).server_arguments(front)
    assert extra[-1] == "--dtype=float32"


def test_another_checkout_is_run_from_its_folder() -> None:
    chosen = settings(beside=Beside("/elsewhere", "abc", ("litelvlm",)))
    assert chosen.server_environment(BESIDE)["PYTHONPATH"].startswith("/elsewhere")
    assert "PYTHONPATH" not in chosen.server_environment(PLUGIN)
    assert "commit abc" in " ".join(notes(chosen, [block(0, STOCK_NAME, 1.0)], Machine.describe()))


def test_ratios_are_taken_round_by_round() -> None:
    blocks = [
        block(0, STOCK_NAME, 1.0),
        block(0, "litelvlm", 2.0),
        block(1, STOCK_NAME, 2.0),
        block(1, "litelvlm", 2.0, seconds=4.0),
    ]
    stock, pruned = summarise(settings(fronts=(Front(1),), texts=(1,)), blocks)
    assert stock.ratios == ()
    assert stock.milliseconds[API_SERVER].mean == pytest.approx(150)
    assert stock.milliseconds["all"].mean == pytest.approx(235)
    [ratio] = pruned.ratios
    assert ratio.to == STOCK_NAME
    assert ratio.milliseconds[API_SERVER].mean == pytest.approx(1.5)
    assert ratio.milliseconds[API_SERVER].standard_error == pytest.approx(0.5)
    assert ratio.milliseconds[ENGINE_CORE] is None
    assert ratio.requests_per_second.mean == pytest.approx(0.75)
    assert "| 1 API server | 1 | litelvlm ÷ stock vLLM | 1.500 ± 0.500 | – |" in markdown([pruned])


def test_ratios_to_another_checkout_stand_beside_those_to_stock() -> None:
    chosen = settings(fronts=(Front(1),), texts=(1,), beside=Beside("path", "abc", ("litelvlm",)))
    names = (STOCK_NAME, "litelvlm", "litelvlm, beside")
    rows = summarise(chosen, [block(0, name, 1.0) for name in names])
    told = [[ratio.to for ratio in row.ratios] for row in rows]
    assert told == [[], [STOCK_NAME, "litelvlm, beside"], [STOCK_NAME]]


def test_usage_is_what_processes_took_since_and_new_ones_took_altogether() -> None:
    before = Usage((Process(1, API_SERVER, 5.0), Process(2, WORKER, 1.0)))
    after = Usage(
        (Process(1, API_SERVER, 6.0), Process(2, WORKER, 4.0), Process(3, API_SERVER, 0.5))
    )
    used = after.since(before)
    assert [process.number for process in used] == [2, 1, 3]
    assert by_role(used) == {API_SERVER: 1.5, ENGINE_CORE: 0.0, WORKER: 3.0, REST: 0.0}


@pytest.mark.parametrize(
    ("requests", "clients", "texts", "processes", "shares"),
    [
        (10, 4, 1, 2, [(5, 2), (5, 2)]),
        (10, 3, 1, 2, [(5, 2), (5, 1)]),
        (10, 1, 1, 2, [(10, 1)]),
        (20, 4, 16, 3, [(16, 2), (16, 2)]),
    ],
)
def test_a_job_is_split_into_whole_images(
    requests: int, clients: int, texts: int, processes: int, shares: list[tuple[int, int]]
) -> None:
    parts = Job("url", "model", requests, clients, texts).split(processes)
    assert [(part.requests, part.clients) for part in parts] == shares


class _Odd(BaseHTTPRequestHandler):
    """Answers every second request as vLLM does, and refuses the others; keeps what was asked."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        accepted = len(self.asked) % 2
        chunks = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "a"}}]},
            {"choices": [], "usage": {"prompt_tokens": 77}},
        ]
        shown = [json.dumps(chunk, separators=(",", ":")) for chunk in chunks]
        stream = "".join(f"data: {chunk}\n\n" for chunk in [*shown, "[DONE]"])
        answer = (stream if accepted else "no such budget").encode()
        self.send_response(200 if accepted else 400)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def odd_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_clients_ask_what_is_new_and_tell_answers_from_failures(odd_server: str) -> None:
    job = Job(odd_server, "model", requests=8, clients=2, texts=2, options={"budget": 64})
    with Clients(2, seed=0) as clients:
        clients.make_images(4)
        clients.prepare(job)
        load = clients.run()
    assert len(load.answers) == len(load.failures) == 4
    assert {answer.prompt_tokens for answer in load.answers} == {77}
    assert all(0 < answer.first_token <= answer.last_token for answer in load.answers)
    assert set(load.failures) == {"HTTP 400: no such budget"}
    with pytest.raises(LoadError, match="4 of 8 requests failed, first: HTTP 400"):
        load.check()
    content = [body["messages"][0]["content"] for body in _Odd.asked]
    assert len({image["image_url"]["url"] for image, _ in content}) == 4
    assert len({text["text"] for _, text in content}) == 8
    assert {body["mm_processor_kwargs"]["litelvlm"]["budget"] for body in _Odd.asked} == {64}


def test_table_leaves_out_words_that_stand_in_the_row_above() -> None:
    rows = [["a", "x", "1"], ["a", "y", "2"], ["b", "y", "3"]]
    assert table(["one", "two", "n"], rows, texts=2).splitlines() == [
        "| one | two | n |",
        "| --- | --- | ---: |",
        "| a | x | 1 |",
        "|  | y | 2 |",
        "| b | y | 3 |",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--what", "everything"],
        ["--clip-model", "clip"],
        ["--budget", "0"],
        ["--texts", "0"],
        ["--api-servers", "none"],
        ["--methods", "keep-all"],
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

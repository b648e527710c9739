"""``litelvlm evaluate`` on a made-up data set and backend, and once with the real server."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.errors import LiteLVLMError, OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Question
from vllm_litelvlm.evaluation.command.arguments import add_arguments
from vllm_litelvlm.evaluation.command.asking import GUESS, ask_all, rotated
from vllm_litelvlm.evaluation.command.conditions import Condition, Method, grid, methods_of
from vllm_litelvlm.evaluation.command.plot import plot
from vllm_litelvlm.evaluation.command.record import NAME, Record
from vllm_litelvlm.evaluation.command.report import tables, write
from vllm_litelvlm.evaluation.command.run import main
from vllm_litelvlm.evaluation.command.settings import EvaluationError, Settings
from vllm_litelvlm.evaluation.command.summary import ALL_KINDS, Row, mean, ratio, summarise
from vllm_litelvlm.evaluation.command.tasks import Judged, Task, load_task
from vllm_litelvlm.evaluation.samples import Dataset, Sample
from vllm_litelvlm.evaluation.server_backend import ServerBackend
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend

ALL_TOKENS = 576
_COMMAND = "import sys; from vllm_litelvlm.cli import main; sys.exit(main())"


def settings_of(*arguments: object) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Settings.of(parser.parse_args([str(argument) for argument in arguments]))


class MadeUpDataset:
    """Two questions about each image: one with a word for an answer, one with a box."""

    name = "made up"
    split = "val"

    def __init__(self, images: int) -> None:
        self._images = images

    def __len__(self) -> int:
        return 2 * self._images

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self._images):
            image = Image.new("RGB", (8, 8), (number, 0, 0))
            about = {"image": image, "texts": (f"thing {number}", "it")}
            word = f"word {number}"
            yield Sample(name=f"{number}-w", prompt="What?", kind="word", answer=word, **about)
            box = (0.0, 0.0, 4.0, 4.0)
            yield Sample(name=f"{number}-b", prompt="Where?", kind="box", box=box, **about)


class MadeUpBackend:
    """Right about words of as many images as its budget has tens, and about no box but with all."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.asked: list[Question] = []
        self._left = math.inf if fails_after is None else fails_after

    def methods(self) -> tuple[str, ...]:
        return ("keep-all", "random", "litelvlm")

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        self._left -= len(questions)
        if self._left < 0:
            raise KeyboardInterrupt
        self.asked += questions
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        budget = question.options.get("budget", ALL_TOKENS)
        number = question.image.getpixel((0, 0))[0]
        text = f"word {number}" if number < budget / 10 else "?"
        if question.prompt == "Where?":
            text = "box" if budget == ALL_TOKENS else "?"
        return Answer(text, (1,), budget + 10, budget, None, None, 0.1)


def judge(sample: Sample, text: str) -> Judged:
    if sample.box is None:
        return Judged(float(text == sample.answer))
    return Judged(float(text == "box"), 0.75 if text == "box" else 0.25)


def made_up(images: int = 4) -> Task:
    dataset: Dataset = MadeUpDataset(images)  # type: ignore[assignment]
    return Task(dataset, judge, lambda sample: "word 0", lambda text: text != "no box", "a box")


def silent() -> Console:
    return Console(file=StringIO())


def run(
    settings: Settings, backend: MadeUpBackend, task: Task | None = None, resume: bool = False
) -> tuple[list[Condition], Record]:
    start = Record.resume if resume else Record.begin
    record = start(settings.output, settings.identity())
    found = ask_all(settings, task or made_up(), nullcontext(backend), record, silent())
    return found, record


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(
        "--url=http://nowhere",
        "--questions=8",
        "--methods=litelvlm",
        "--budgets",
        20,
        40,
        "--concurrent=1",
        f"--output={tmp_path / 'out'}",
    )


def labels(*arguments: object) -> list[str]:
    return [method.label for method in settings_of("--model=m", *arguments).methods]


# --- conditions ---


def test_all_tokens_and_chance_are_always_there() -> None:
    assert labels() == [
        "keep-all",
        "random",
        "litelvlm",
        "litelvlm-reference",
        "litelvlm-value",
        "fovea",
    ]
    assert labels("--methods", "trim", "random") == ["keep-all", "random", "trim"]


def test_every_method_at_every_budget_and_none_at_all_tokens() -> None:
    methods = methods_of(["litelvlm"], [], decoder=False)
    names = [one.name for one in grid(methods, [64, 576, 192, 64], ALL_TOKENS)]
    assert names == ["keep-all", "random@192", "random@64", "litelvlm@192", "litelvlm@64"]


def test_positions_are_conditions_of_their_own_but_for_methods_that_have_no_choice() -> None:
    backend = ("--backend=transformers", "--methods", "litelvlm", "fastv")
    both = labels(*backend, "--positions", "compact", "original")
    expected = ["keep-all", "random", "random original", "litelvlm", "litelvlm original", "fastv"]
    assert both == expected
    assert labels(*backend, "--positions", "original") == [
        *("keep-all", "random original", "litelvlm original", "fastv")
    ]
    assert labels(*backend) == ["keep-all", "random", "litelvlm", "fastv"]


def test_keep_all_alone_is_compared_with_nothing() -> None:
    assert labels("--methods", "keep-all") == ["keep-all"]


def test_budget_above_all_tokens_is_refused() -> None:
    with pytest.raises(OptionsError, match="--budgets has 577; allowed: at most 576"):
        grid(methods_of(None, [], decoder=False), [64, 577], ALL_TOKENS)


def test_methods_take_options_and_names_for_them() -> None:
    named = ["litelvlm-reference-value", "litelvlm:share=0.25,context=false", "random:seed=3"]
    by_label = {method.label: method for method in methods_of(named, [], decoder=False)}
    assert by_label["litelvlm-reference-value"].options == {
        "variant": "reference",
        "guidance": "value",
    }
    assert by_label["litelvlm:share=0.25,context=false"].options == {
        "share": 0.25,
        "context": False,
    }
    [sparse] = methods_of(["sparsevlm:layers=[2,6],schedule=[300,100]"], [], decoder=True)[2:]
    assert sparse.options == {"layers": [2, 6], "schedule": [300, 100]}
    layered, plain = methods_of(["fovea-layers", "fovea-no-text"], [], decoder=False)[2:]
    assert (layered.method, layered.options) == ("fovea", {"focus": 0.25})
    assert (plain.method, plain.options) == ("fovea", {"text": 0})
    [written] = methods_of(["fovea:focus=0.25,text=16"], [], decoder=False)[2:]
    assert written.options == {"focus": 0.25, "text": 16}
    assert by_label["random"].draws
    assert not by_label["random:seed=3"].draws


def test_ablations_are_the_papers_tables() -> None:
    share = labels("--ablation", "share")
    assert share[2:] == [
        *(f"litelvlm:share={share}" for share in ("0.0", "0.05", "0.25", "0.5", "0.75", "1.0")),
        "litelvlm",
    ]
    both = settings_of("--model=m", "--ablation", "share", "components").methods
    options = [dict(method.options) for method in both]
    assert {"share": 0.0} in options  # Table 4 #1
    assert {"direction": "high", "context": False} in options  # 2
    assert {"direction": "low", "context": False} in options  # 3
    assert {"direction": "low", "context": True} in options  # 4
    assert len({method.label for method in both}) == len(both)


@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_method_inside_the_language_model_is_refused_with_the_engines_sentence(method: str) -> None:
    with pytest.raises(OptionsError, match="paged attention does not give them"):
        settings_of("--model=m", "--methods", method)
    assert method in labels("--methods", method, "--backend=transformers")
    assert method in labels("--methods", "all", "--backend=transformers")
    assert method not in labels("--methods", "all")


def test_layers_are_refused_with_transformers(backend: TransformersBackend) -> None:
    options = {"method": "fovea", "focus": 0.25}
    with pytest.raises(OptionsError, match="an image's tokens in one layer"):
        backend.answer([Question(Image.new("RGB", (8, 8)), "What?", options, 1)])


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("none", "'method' is \"none\""),
        ("litelvlm:shares=0.5", "'shares' is unknown"),
        ("litelvlm:share=2", "'share' is 2"),
        ("litelvlm:variant=papers", "'variant' is \"papers\""),
        ("litelvlm:share", "'share' is \"\""),
        ("fovea:focus=1", "'focus' is 1"),
        ("trim:focus=0.25", "trim does not choose in layers.*: litelvlm, fovea"),
        ("fovea:budget=64", "'budget' is no method's own; say it by --budgets"),
        ("fovea:positions=original", "'positions' is no method's own"),
    ],
)
def test_method_or_option_that_does_not_exist_is_refused(method: str, told: str) -> None:
    with pytest.raises(OptionsError, match=told):
        settings_of("--model=m", "--methods", method)


def test_requests_are_guided_by_expressions_and_draw_for_each_sample() -> None:
    first, second = list(MadeUpDataset(1))
    drawn = Condition(Method("random", "random", {}, draws=True), 64)
    options = drawn.options(first, False, 0)
    seed = options.pop("seed")
    assert options == {"method": "random", "budget": 64}
    others = (drawn.options(second, False, 0), drawn.options(first, False, 1))
    assert seed not in [other["seed"] for other in others]
    assert drawn.options(first, False, 0)["seed"] == seed
    by_expressions = Condition(Method("a", "trim", {}), 64).options(first, True, 0)
    assert by_expressions["texts"] == ["thing 0", "it"]


# --- settings ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "either --model"),
        (["--model=m", "--url=u"], "either --model"),
        (["--backend=transformers"], "needs --model"),
        (["--backend=engine", "--url=u"], "--backend engine needs --model"),
        (["--backend=transformers", "--model=m", "--", "--dtype=float32"], "neither --url nor"),
        (["--url=u", "--dtype=float32"], "the one at --url has its own"),
        (["--model=m", "--texts=3"], "needs --guide-by expressions"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(OptionsError, match=told):
        settings_of(*arguments)


def test_split_or_folder_that_the_data_set_does_not_have_is_refused() -> None:
    with pytest.raises(OptionsError, match="--split testA: scenes have train, val, test"):
        load_task(settings_of("--model=m", "--split=testA"))
    with pytest.raises(OptionsError, match=r"--dataset refcoco\+ needs --data"):
        load_task(settings_of("--model=m", "--dataset=refcoco+"))


def test_scenes_are_judged_and_guessed() -> None:
    task = load_task(settings_of("--model=m", "--questions=24"))
    samples = list(task.dataset)
    assert len(samples) == 24
    for sample in samples:
        guess = task.guess(sample)
        assert guess == task.guess(sample)
        judged = task.judge(sample, guess)
        assert judged.score in (0, 1)
        assert (judged.iou is None) == (sample.box is None)
        if sample.answer is not None:
            assert task.judge(sample, sample.answer).score == 1
            assert task.max_tokens(sample) < 20
    assert len({task.guess(sample) for sample in samples}) > 4
    [box, *_] = [sample for sample in samples if sample.box is not None]
    assert task.judge(box, "nothing") == Judged(0, 0)


# --- asking and resuming ---


def test_everything_is_asked_once_and_judged(settings: Settings) -> None:
    backend = MadeUpBackend()
    conditions, record = run(settings, backend)
    names = [one.name for one in conditions]
    assert names == ["keep-all", "random@40", "random@20", "litelvlm@40", "litelvlm@20"]
    assert len(backend.asked) == 2 + 5 * 8  # the first two find out what all tokens are
    assert {name: record.count(name) for name in [*names, GUESS]} == dict.fromkeys(
        [*names, GUESS], 8
    )
    assert len({question.options["seed"] for question in backend.asked if _draws(question)}) == 8
    lines = (settings.output / NAME).read_text().splitlines()
    assert len(lines) == 1 + 6 * 8


def _draws(question: Question) -> bool:
    return question.options["method"] == "random"


def test_fewer_questions_than_the_data_set_has_are_its_first(settings: Settings) -> None:
    _, record = run(settings, MadeUpBackend(), made_up(images=9))
    assert {answer.sample for answer in record.answers} == {
        f"{number}-{kind}" for number in range(4) for kind in "wb"
    }


def test_interrupted_evaluation_goes_on_where_it_was(settings: Settings) -> None:
    first = MadeUpBackend(fails_after=22)
    with pytest.raises(KeyboardInterrupt):
        run(settings, first)
    with (settings.output / NAME).open("a") as file:
        file.write('{"condition": "half a li')
    second = MadeUpBackend()
    conditions, resumed = run(settings, second, resume=True)
    assert len(first.asked) + len(second.asked) == 4 + 5 * 8
    _, whole = run(settings, MadeUpBackend())
    assert [summary.score for summary in summarise(conditions, resumed.answers)] == [
        summary.score for summary in summarise(conditions, whole.answers)
    ]


def test_complete_evaluation_asks_nothing_again(settings: Settings) -> None:
    run(settings, MadeUpBackend())
    backend = MadeUpBackend(fails_after=0)
    conditions, record = run(settings, backend, resume=True)
    assert not backend.asked
    assert len(record.answers) == 8 * (1 + len(conditions))


def test_resuming_with_more_methods_asks_for_these_only(settings: Settings) -> None:
    run(settings, MadeUpBackend())
    more = settings_of(
        "--url=http://nowhere",
        "--questions=8",
        "--methods",
        "litelvlm",
        "litelvlm-value",
        "--budgets=20",
        "--concurrent=1",
        f"--output={settings.output}",
    )
    backend = MadeUpBackend()
    conditions, _ = run(more, backend, resume=True)
    assert [one.name for one in conditions][-1] == "litelvlm-value@20"
    assert {question.options.get("guidance") for question in backend.asked[2:]} == {"value"}
    assert len(backend.asked) == 2 + 8


def test_method_of_the_decoder_is_left_out_where_its_budget_cannot_be(tmp_path: Path) -> None:
    class Limited(MadeUpBackend):
        def answer(self, questions: Sequence[Question]) -> list[Answer]:
            for question in questions:
                if question.options["method"] == "sparsevlm" and question.options["budget"] != 64:
                    raise OptionsError("no schedule is published")
            return super().answer(questions)

    arguments = ["--model=m", "--backend=transformers", "--methods=sparsevlm", "--questions=4"]
    settings = settings_of(*arguments, "--budgets", 64, 29, f"--output={tmp_path}")
    record = Record.begin(settings.output, settings.identity())
    console = silent()
    conditions = ask_all(settings, made_up(), nullcontext(Limited()), record, console)
    names = [one.name for one in conditions]
    assert names == ["keep-all", "random@64", "random@29", "sparsevlm@64"]
    assert isinstance(console.file, StringIO)
    assert "sparsevlm@29 is left out: no schedule is published" in console.file.getvalue()
    told = tables(summarise(conditions, record.answers))
    [line] = [line for line in told.splitlines() if line.startswith("| sparsevlm | –")]
    assert line.endswith("| – |")


def test_other_settings_cannot_go_on(settings: Settings) -> None:
    run(settings, MadeUpBackend())
    other = {**settings.identity(), "seed": 1}
    with pytest.raises(EvaluationError, match="seed was 0 and is 1"):
        Record.resume(settings.output, other)
    with pytest.raises(EvaluationError, match="has no answers to go on from"):
        Record.resume(settings.output / "elsewhere", other)


def test_conditions_take_turns_at_being_first() -> None:
    assert [rotated("abc", number) for number in range(3)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
    ]


# --- statistics ---


def test_mean_and_ratio_have_the_errors_of_a_bootstrap_over_images() -> None:
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(120), 4)
    kinds = np.tile(["a", "a", "a", "b"], 120)
    easy = np.repeat(random.random(120), 4)  # samples about an image are alike
    full = (random.random(480) < 0.3 + 0.6 * easy).astype(float)
    scores = full * (random.random(480) < 0.7)

    def by_kind(values: Any, chosen: Any) -> float:
        return float(np.mean([values[chosen][kinds[chosen] == kind].mean() for kind in "ab"]))

    draws = []
    for _ in range(3000):
        taken = random.integers(0, 120, 120)
        chosen = (4 * taken[:, None] + np.arange(4)).reshape(-1)
        one, other = by_kind(scores, chosen), by_kind(full, chosen)
        draws.append((one, 100 * one / other))
    everything = np.arange(480)
    score, relative = mean(scores, kinds, images), ratio(scores, full, kinds, images)
    assert relative is not None
    assert score.value == pytest.approx(by_kind(scores, everything))
    assert relative.value == pytest.approx(100 * score.value / by_kind(full, everything))
    bootstrap = np.std(draws, axis=0)
    assert score.standard_error == pytest.approx(bootstrap[0], rel=0.06)
    assert relative.standard_error == pytest.approx(bootstrap[1], rel=0.06)


def test_independent_samples_of_one_kind_have_the_usual_standard_error() -> None:
    scores = np.array([0.0, 1, 1, 0, 1, 1, 1])
    found = mean(scores, np.array(["a"] * 7), np.arange(7))
    assert found.value == pytest.approx(5 / 7)
    assert found.standard_error == pytest.approx(scores.std(ddof=1) / np.sqrt(7))


def test_one_image_has_no_error_and_no_score_no_ratio() -> None:
    scores, kinds, images = np.array([1.0, 0]), np.array(["a", "a"]), np.array([5, 5])
    assert mean(scores, kinds, images).standard_error is None
    assert ratio(scores, np.zeros(2), kinds, images) is None


def test_all_tokens_keep_all_of_their_score_beyond_doubt(settings: Settings) -> None:
    rows = rows_of(settings)
    for kind in (ALL_KINDS, "word", "box"):
        relative = rows["keep-all", kind].relative
        assert relative is not None
        assert (relative.value, relative.standard_error) == (100, 0)


def rows_of(settings: Settings) -> dict[tuple[str, str], Row]:
    conditions, record = run(settings, MadeUpBackend())
    return {(row.condition, row.kind): row for row in summarise(conditions, record.answers)}


def test_scores_are_by_kind_and_together_the_mean_of_kinds(settings: Settings) -> None:
    rows = rows_of(settings)
    word, box = rows["litelvlm@20", "word"], rows["litelvlm@20", "box"]
    assert (word.questions, word.score.value) == (4, 0.5)
    assert (box.questions, box.score.value) == (4, 0)
    assert box.iou is not None
    assert box.iou.value == 0.25
    assert word.iou is None
    together = rows["litelvlm@20", ALL_KINDS]
    assert together.score.value == 0.25
    assert together.relative is not None
    assert together.relative.value == pytest.approx(25)
    assert (together.visual_tokens, together.prompt_tokens) == (20, 30)
    assert together.requests_per_second is not None
    assert together.requests_per_second > 0
    assert rows[GUESS, "word"].score.value == 0.25


def test_difference_to_random_is_from_the_same_questions(settings: Settings) -> None:
    conditions, record = run(settings, MadeUpBackend())
    rows = {(row.condition, row.kind): row for row in summarise(conditions, record.answers)}
    for name, kind in rows:
        beside = rows[name, kind].beside
        if not name.startswith("litelvlm"):
            assert not beside  # there is no fovea here, and nothing is compared with itself
            continue
        chance = rows[name.replace("litelvlm", "random"), kind]
        assert set(beside) == {"random"}
        expected = rows[name, kind].score.value - chance.score.value
        assert beside["random"].value == pytest.approx(expected)
    assert "| above random |" in tables([*rows.values()])


def test_a_method_that_was_asked_in_part_is_compared_with_nothing(settings: Settings) -> None:
    conditions, record = run(settings, MadeUpBackend())
    whole = [one for one in record.answers if one.condition == "litelvlm@20"]
    earlier = [replace(one, condition="fovea@20") for one in whole[:2]]  # of another --methods
    for row in summarise(conditions, [*record.answers, *earlier]):
        assert "fovea" not in row.beside


# --- report ---


def test_tables_name_every_condition_and_kind(settings: Settings) -> None:
    conditions, record = run(settings, MadeUpBackend())
    rows = summarise(conditions, record.answers)
    told = tables(rows)
    assert "| method | 20 tokens | 40 tokens | no budget |" in told
    assert "| method | budget | word (4) | box (4) |" in told
    [line] = [line for line in told.splitlines() if line.startswith("| litelvlm | 0.250")]
    assert line.count("%") == 2
    for number in {line.count("|") for line in told.splitlines() if line.startswith("| guess")}:
        assert number > 4


def test_files_hold_tables_rows_notes_and_the_command(settings: Settings) -> None:
    conditions, record = run(settings, MadeUpBackend())
    rows = summarise(conditions, record.answers)
    write(settings, rows, "litelvlm evaluate --url=http://nowhere")
    result = json.loads((settings.output / "results.json").read_text())
    assert len(result["rows"]) == len(rows) == 3 * (len(conditions) + 1)
    assert result["settings"]["questions"] == 8
    told = (settings.output / "table.md").read_text()
    assert told.endswith("    litelvlm evaluate --url=http://nowhere\n")
    assert "the first 8 questions" in told


def test_plot_is_drawn_for_several_kinds_and_for_one(settings: Settings, tmp_path: Path) -> None:
    conditions, record = run(settings, MadeUpBackend())
    plot(summarise(conditions, record.answers), tmp_path / "both.png", "title")
    words = [answer for answer in record.answers if answer.kind == "word"]
    plot(summarise(conditions, words), tmp_path / "one.png", "title")
    for name in ("both.png", "one.png"):
        with Image.open(tmp_path / name) as drawn:
            assert min(drawn.size) > 400


# --- the command ---


def test_error_is_a_sentence_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model=m", "--methods=fastv", f"--output={tmp_path / 'out'}"], serve) == 1
    assert capsys.readouterr().err.startswith("litelvlm: litelvlm option 'method' is \"fastv\"")
    assert not (tmp_path / "out").exists()


def test_server_that_does_not_answer_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url=http://127.0.0.1:9", "--questions=1", f"--output={tmp_path}"]
    assert main(arguments, serve) == 1
    assert "The server at http://127.0.0.1:9 did not answer" in capsys.readouterr().err


def test_served_model_is_evaluated_and_resuming_asks_nothing(
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [f"--model={checkpoint.llava}", f"--clip-model={checkpoint.clip}"]
    arguments += ["--questions=8", "--budgets", "64", "29", "--dtype=float32", "--concurrent=4"]
    arguments += ["--guide-by=expressions", f"--output={tmp_path}"]
    arguments += ["--positions", "compact", "original"]
    served = ["--", "--enforce-eager", "--max-model-len=2048", "--max-num-seqs=8"]
    assert main([*arguments, *served], serve) == 0
    printed = capsys.readouterr().out
    answers = (tmp_path / NAME).read_text()
    [_, *lines] = map(json.loads, answers.splitlines())
    by_condition: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_condition.setdefault(line["condition"], []).append(line)
    methods = ("random", "litelvlm", "litelvlm-reference", "litelvlm-value", "fovea")
    labelled = [f"{method}{place}" for method in methods for place in ("", " original")]
    expected = {f"{label}@{budget}" for label in labelled for budget in (64, 29)}
    assert set(by_condition) == {"keep-all", "guess", *expected}
    for name, some in by_condition.items():
        assert len({line["sample"] for line in some}) == len(some) == 8
        tokens = {"keep-all": 576, "guess": 0}.get(name) or int(name.partition("@")[2] or 0)
        assert {line["visual_tokens"] for line in some} == {tokens}
    assert (tmp_path / "table.md").read_text().startswith(printed.strip())
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) >= 10

    def refuse(*_: Any, **__: Any) -> Any:
        raise LiteLVLMError("nothing is to be served")

    monkeypatch.setattr(ServerBackend, "answer", refuse)
    assert main([*arguments, "--resume", *served], refuse) == 0
    assert (tmp_path / NAME).read_text() == answers
    assert capsys.readouterr().out == printed

    # The engine without a server gives the same answers.
    engine = [*arguments, "--backend=engine", f"--output={tmp_path / 'engine'}", *served]
    command = [sys.executable, "-c", _COMMAND, "evaluate", *engine]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run(command, env=environment, check=True, timeout=300)
    [_, *others] = map(json.loads, (tmp_path / "engine" / NAME).read_text().splitlines())
    assert set(map(_said, others)) == set(map(_said, lines))


def _said(line: dict[str, Any]) -> tuple[str, str, str, int]:
    return line["condition"], line["sample"], line["text"], line["prompt_tokens"]

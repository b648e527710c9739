"""``litelvlm evaluate --tune`` on a made-up data set and models that like known options."""

import argparse
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Question
from vllm_litelvlm.evaluation.command import run
from vllm_litelvlm.evaluation.command.arguments import add_arguments
from vllm_litelvlm.evaluation.command.record import NAME
from vllm_litelvlm.evaluation.command.summary import gain
from vllm_litelvlm.evaluation.command.tasks import Judged, Task
from vllm_litelvlm.evaluation.command.tuning import space as tuning_space
from vllm_litelvlm.evaluation.command.tuning.plan import plan_of
from vllm_litelvlm.evaluation.command.tuning.space import space_of
from vllm_litelvlm.evaluation.samples import Dataset, Sample
from vllm_litelvlm.options import COMMON_OPTIONS, parse_server_options
from vllm_litelvlm.pruning.fovea import Fovea
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.registry import build_pruner, method_names

ALL_TOKENS = 576
#: What is asked to find out what the model can run.
BLANK = "What is this?"

Options = Mapping[str, Any]


@dataclass(frozen=True)
class MadeUpDataset:
    """Two questions about each image, each with a kind of its own."""

    images: int
    name: str = "made up"
    split: Literal["val"] = "val"

    def __len__(self) -> int:
        return 2 * self.images

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self.images):
            image = Image.new("RGB", (4, 4), (number % 256, number // 256, 0))
            for kind in "ab":
                name = f"{number}{kind}"
                yield Sample(name, image, name, ("it",), kind, answer="right")


class MadeUpBackend:
    """Right about the share of questions that ``quality`` says of the options.

    Those it is right about are the easiest ones, whatever the options; ``noisy``: others with
    others. It refuses what ``lacks`` is true of, and is interrupted after ``fails_after`` answers.
    """

    def __init__(
        self,
        quality: Callable[[Options], float],
        noisy: int | None = None,
        lacks: Callable[[Options], bool] = lambda options: False,
        fails_after: float = math.inf,
    ) -> None:
        self.asked: list[tuple[str, str]] = []
        self._quality, self._noisy, self._lacks = quality, noisy, lacks
        self._left = fails_after

    def methods(self) -> tuple[str, ...]:
        return method_names()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        for question in questions:
            if self._lacks(question.options):
                raise OptionsError("the model has no such score")
        asked = [one for one in questions if one.prompt != BLANK]
        self._left -= len(asked)
        if self._left < 0:
            raise KeyboardInterrupt
        self.asked += [(json.dumps(dict(one.options)), one.prompt) for one in asked]
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        options = {name: value for name, value in question.options.items() if name != "seed"}
        drawn = "" if self._noisy is None else f"{self._noisy} {sorted(options.items())}"
        uniform = np.random.default_rng(zlib.crc32(f"{question.prompt} {drawn}".encode())).random()
        right = uniform < self._quality(options)
        budget = options.get("budget", ALL_TOKENS)
        return Answer("right" if right else "?", (1,), budget, budget, None, None, 0.1)


def likes(text: float, context: float) -> Callable[[Options], float]:
    """The quality of a model that answers best with these weights of fovea."""

    def quality(options: Options) -> float:
        if options["method"] != "fovea":
            return 0.9 if options["method"] == "keep-all" else 0.2
        away = [
            abs(math.log2(1 + options.get("text", 8)) - math.log2(1 + text)),
            abs(math.log2(1 + options.get("context", 4)) - math.log2(1 + context)),
            options.get("direction") is not None,
        ]
        return 0.85 - 0.1 * sum(away)

    return quality


def even(options: Options) -> float:
    return 0.5


@dataclass
class Run:
    """What a tuning wrote, printed and told."""

    folder: Path
    out: str
    told: str

    @property
    def page(self) -> str:
        return (self.folder / "tuned.md").read_text()

    @property
    def options(self) -> dict[str, Any]:
        read = yaml.safe_load((self.folder / "tuned.yaml").read_text())
        assert read["plugin"] == "litelvlm"
        options: dict[str, Any] = read["additional-config"]["litelvlm"]
        return options


class Tune:
    """Runs the command with a made-up data set and backend in place of real ones."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self._folder, self._patch, self._capture = folder, patch, capture
        self.opened = 0

    def __call__(
        self, backend: MadeUpBackend, *arguments: object, images: int = 100, resume: bool = False
    ) -> Run:
        @contextmanager
        def opened(*_: Any) -> Iterator[MadeUpBackend]:
            self.opened += 1
            yield backend

        dataset: Dataset = MadeUpDataset(images)
        task = Task(
            dataset,
            lambda sample, text: Judged(float(text == "right")),
            lambda sample: "?",
            lambda text: True,
            "",
        )
        self._patch.setattr(run, "open_backend", opened)
        self._patch.setattr(run, "load_task", lambda settings: task)
        told = Console(file=StringIO(), width=300)
        given = [*arguments, "--output", self._folder, *(["--resume"] if resume else [])]
        run.evaluate(parsed("--model=m y", *given), None, "litelvlm evaluate ...", told)  # type: ignore[arg-type]
        assert isinstance(told.file, StringIO)
        return Run(self._folder, self._capture.readouterr().out, told.file.getvalue())


@pytest.fixture
def tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tune:
    return Tune(tmp_path / "out", monkeypatch, capsys)


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


# --- what is found ---


def test_best_options_are_found_and_written_for_the_server(tune: Tune) -> None:
    backend = MadeUpBackend(likes(text=32, context=1))
    found = tune(backend, "--tune=fovea", "--budgets", 64, "--questions=200")
    assert found.options == {
        "method": "fovea",
        "text": 32,
        "context": 1,
        "budget": 64,
        "positions": "compact",
    }
    defaults = parse_server_options(found.options).defaults
    assert (defaults.method, defaults.budget) == ("fovea", 64)
    assert build_pruner(defaults.method, defaults.parameters) == Fovea(text=32, context=1)
    written = json.dumps({"litelvlm": found.options})
    command = f"vllm serve 'm y' --plugin litelvlm --additional-config '{written}'"
    assert command in found.out
    assert command in found.page
    assert f"vllm serve 'm y' --config {found.folder / 'tuned.yaml'}" in found.page
    assert "fovea:text=32,context=1 scores better than fovea by" in found.page
    assert "text: fovea:text=32, better than fovea by" in found.told


def test_everything_tried_is_in_the_table_and_both_ends_in_the_evaluations(tune: Tune) -> None:
    backend = MadeUpBackend(likes(text=32, context=1))
    page = tune(backend, "--tune=fovea", "--budgets", 64, 128, "--questions=200").page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| fovea")]
    assert [row[0] for row in rows][:3] == ["| fovea", "| fovea:text=0", "| fovea:text=2"]
    assert {row[1] for row in rows} == {"25", "50", "100"}
    assert "| **fovea:text=32,context=1** | 100 |" in page
    assert "| 64 tokens | 128 tokens |" in page
    assert "none is among these options" in page
    assert "| on unseen images (100) |" in page
    table = (tune._folder / "table.md").read_text()
    for name in ("keep-all", "random", "fovea", "fovea:text=32,context=1"):
        assert f"\n| {name} | " in table
    results = json.loads((tune._folder / "results.json").read_text())
    assert {row["questions"] for row in results["rows"] if row["kind"] == "all"} == {200}


def test_options_that_were_given_stay(tune: Tune) -> None:
    backend = MadeUpBackend(likes(text=32, context=1))
    arguments = ("--budgets", 64, "--questions=200", "--positions=original")
    found = tune(backend, "--tune=fovea:context=4", *arguments)
    assert found.options["text"] == 32
    assert found.options["context"] == 4
    assert found.options["positions"] == "original"
    contexts = {json.loads(options).get("context") for options, _ in backend.asked}
    assert contexts == {None, 4}


@pytest.mark.parametrize("seed", range(8))
def test_noise_does_not_move_the_defaults(tune: Tune, seed: int) -> None:
    backend = MadeUpBackend(even, noisy=seed)
    found = tune(backend, "--tune=fovea", "--budgets", 64, "--questions=120", images=60)
    assert found.options == {"method": "fovea", "budget": 64, "positions": "compact"}
    assert "fovea stays: " in found.out


def test_where_nothing_differs_the_search_ends_at_the_defaults(tune: Tune) -> None:
    found = tune(MadeUpBackend(even), "--tune=scope", "--budgets", 64, 32, "--questions=64")
    assert found.options == {"method": "scope", "positions": "compact"}
    assert "scope stays: nothing that was tried came out better" in found.page
    assert "Judged" not in found.page


def test_all_budgets_count(tune: Tune) -> None:
    def quality(options: Options) -> float:
        """Much better at 64 tokens, worse still at 128."""
        if options.get("alpha") != 2:
            return 0.5
        return {64: 0.8, 128: 0.1}[options["budget"]]

    arguments = ("--tune=scope", "--questions=200", "--budgets")
    assert "alpha" not in tune(MadeUpBackend(quality), *arguments, 64, 128).options
    assert tune(MadeUpBackend(quality), *arguments, 64).options["alpha"] == 2


def test_value_that_the_model_cannot_run_is_left_out_and_told(tune: Tune) -> None:
    def lacks(options: Options) -> bool:
        return options.get("guidance") == "similarity"

    backend = MadeUpBackend(likes(text=32, context=1), lacks=lacks)
    found = tune(backend, "--tune=fovea", "--budgets", 64, "--questions=200")
    assert found.options["text"] == 32
    assert "guidance=similarity@64 is left out: the model has no such score" in found.told
    assert "similarity" not in found.page


def test_method_that_the_model_cannot_run_is_refused(tune: Tune) -> None:
    backend = MadeUpBackend(even, lacks=lambda options: options["method"] == "trim")
    with pytest.raises(OptionsError, match="no such score"):
        tune(backend, "--tune=trim", "--questions=64")
    assert not backend.asked


# --- how many are asked ---


def test_questions_stay_within_their_number_and_ever_more_choose_with_more(tune: Tune) -> None:
    searched = []
    for most in (1000, 1500, 3000, 20_000):
        backend = MadeUpBackend(likes(text=32, context=1))
        arguments = ("--budgets", 64, "--questions=200", f"--tune-questions={most}")
        page = tune(backend, "--tune=fovea", *arguments).page
        assert len(backend.asked) == len(set(backend.asked)) <= most
        assert f"The model was asked {len(backend.asked)} questions of at most {most}," in page
        [told] = [line for line in page.splitlines() if line.startswith("**Everything tried")]
        searched.append(int(told.partition("search's ")[2].split()[0]))
    assert searched == sorted(searched)
    assert searched[-1] == 100


def test_too_few_questions_are_refused_and_the_least_is_enough(tune: Tune) -> None:
    arguments = ("--tune=fovea", "--budgets", 64, "--questions=64", "--tune-questions")
    backend = MadeUpBackend(likes(text=32, context=1))
    with pytest.raises(OptionsError, match=r"--tune-questions is 9; allowed: at least (\d+)") as no:
        tune(backend, *arguments, 9)
    least = int(str(no.value).partition("at least ")[2].partition(",")[0])
    with pytest.raises(OptionsError, match=f"at least {least}"):
        tune(backend, *arguments, least - 1)
    assert not backend.asked
    tune(backend, *arguments, least)
    assert len(backend.asked) <= least
    with pytest.raises(OptionsError, match="--tune has 16 questions; allowed: at least 32"):
        tune(backend, *arguments, least, images=8)


def test_plan_counts_what_is_asked_at_most() -> None:
    space = space_of("scope")
    plan = plan_of(space, 2, 400, None)
    assert plan.searched == 200
    # Three other values: of these 3, then 2, then 1 go on, with 50, 50 and 100 questions more.
    assert plan.axis_cost(3, 2) == 2 * (3 * 50 + 2 * 50 + 1 * 100)
    assert plan.most == 400 + 2 * (2 * 400 + 200) + 2 * plan.axis_cost(3, 2)


# --- resuming ---


def test_interrupted_tuning_goes_on_and_asks_nothing_twice(tune: Tune) -> None:
    arguments = ("--tune=fovea", "--budgets", 64, "--questions=200", "--concurrent=2")
    whole = MadeUpBackend(likes(text=32, context=1))
    page = tune(whole, *arguments).page
    (tune._folder / NAME).unlink()
    asked: list[tuple[str, str]] = []
    for number, fails_after in enumerate((300, 500, math.inf)):
        backend = MadeUpBackend(likes(text=32, context=1), fails_after=fails_after)
        if fails_after < math.inf:
            with pytest.raises(KeyboardInterrupt):
                tune(backend, *arguments, resume=number > 0)
        else:
            assert tune(backend, *arguments, resume=True).page == page
        asked += backend.asked
    assert sorted(asked) == sorted(whole.asked)


def test_complete_tuning_opens_nothing(tune: Tune) -> None:
    arguments = ("--tune=fovea", "--budgets", 64, "--questions=200")
    first = tune(MadeUpBackend(likes(text=32, context=1)), *arguments)
    page, out, before = first.page, first.out, tune.opened
    again = tune(MadeUpBackend(even, fails_after=0), *arguments, resume=True)
    assert (again.page, again.out) == (page, out)
    assert tune.opened == before


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tune=fovea", "--dataset=refcoco", "--split=testA"], "tune on --split val or train"),
        (["--tune=fovea", "--split=test"], "--split test is there to judge"),
        (["--tune=fovea", "--task=masks"], "--tune is for answers"),
        (["--tune-questions=9", "--task=masks"], "--tune-questions is for answers"),
        (["--tune-questions=9"], "--tune-questions needs --tune METHOD"),
        (["--tune=fovea", "--methods=trim"], "leave --methods and --ablation out"),
        (["--tune=fovea", "--ablation=share"], "leave --methods and --ablation out"),
        (["--tune=fovea", "--positions", "compact", "original"], "one of --positions"),
        (["--tune=tome"], "tome has no options that can be tuned; these have: litelvlm, fovea"),
        (["--tune=random"], "random has no options that can be tuned"),
        (["--tune=scope:alpha=3"], "fixes every option"),
        (["--tune=none"], "'method' is \"none\""),
        (["--tune=fastv", "--backend=transformers"], "prunes inside the language model"),
        (["--tune=fovea:texts=3"], "'texts' is no method's own"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    tune: Tune, arguments: list[str], told: str
) -> None:
    with pytest.raises(OptionsError, match=told):
        tune(MadeUpBackend(even), *arguments)
    assert not tune._folder.exists()
    assert not tune.opened


# --- spaces ---


def tunable() -> Iterator[str]:
    for name in method_names():
        try:
            space_of(name)
        except OptionsError:
            continue
        yield name


@pytest.mark.parametrize("label", [*tunable(), "litelvlm-reference", "fovea:focus=0.25"])
def test_every_setting_of_a_space_exists_once(label: str) -> None:
    space = space_of(label)
    found = {}
    for axis in space.axes:
        others = space.others(space.default, axis)
        assert others
        for one in others:
            own = {name: value for name, value in one.options.items() if name not in COMMON_OPTIONS}
            found[one.label] = build_pruner(one.method, own)
    pruners = [*found.values(), build_pruner(space.default.method, {})]
    assert len(set(map(repr, pruners))) >= len(found)
    back = space.others(space.others(space.default, space.axes[0])[0], space.axes[0])
    assert space.default in back or label in tuning_space.BY_MODEL


def test_value_that_some_models_have_by_default_is_asked_for_by_name() -> None:
    [axis] = space_of("eadp").axes
    tried = [one.options for one in space_of("eadp").others(space_of("eadp").default, axis)]
    assert {"power": 1} in tried
    assert {"power": 2} in tried


def test_fixed_options_leave_what_goes_with_them() -> None:
    space = space_of("fovea:text=2,context=0,guidance=similarity", "original")
    [axis] = space.axes
    assert [one.label for one in space.others(space.default, axis)] == [
        "fovea:text=2,context=0,guidance=similarity,direction=high original"
    ]
    layered = space_of("fovea-layers")
    tried = [one.options for axis in layered.axes for one in layered.others(layered.default, axis)]
    assert {name for options in tried for name in options} == {
        *("focus", "focus_text", "context", "guidance", "direction")
    }
    assert {options["focus"] for options in tried} == {0.25}


class Foreign(KeepAll):
    name = "foreign"
    number: float = 1
    whether: bool = True
    word: Literal["x", "y", "z"] = "y"
    perhaps: Literal["x"] | None = None
    mixed: Literal["x"] | int = 1


def test_other_methods_are_tuned_by_their_truths_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_space, "pruner_class", lambda name: Foreign)
    monkeypatch.setattr(tuning_space, "method_of", lambda label: tuning_space.Method(label, label))
    space = space_of("foreign")
    tried = [one.label for axis in space.axes for one in space.others(space.default, axis)]
    assert tried == [f"foreign:{one}" for one in ("whether=false", "word=x", "word=z", "perhaps=x")]


# --- statistics ---


def test_error_of_no_difference_is_of_images_and_never_nothing() -> None:
    kinds, images = np.array(["a", "b", "b"]), np.array([1, 2, 3])
    one = gain(np.array([1.0, 0, 0]), kinds, images)
    assert (one.value, one.standard_error) == (0.5, 0.5)
    random = np.random.default_rng(0)
    kinds, images = np.tile(["a", "b"], 100), np.repeat(np.arange(50), 4)
    draws = [gain(np.repeat(random.integers(-1, 2, 50), 4), kinds, images) for _ in range(2000)]
    errors = [draw.standard_error or 0.0 for draw in draws]
    assert np.std([draw.value for draw in draws]) == pytest.approx(np.mean(errors), rel=0.05)

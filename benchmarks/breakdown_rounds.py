"""Asks every request round by round, on vLLM in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from benchmarks.breakdown_engine import Answer, Engine, Questions
from benchmarks.breakdown_settings import Settings
from benchmarks.machine import OtherLoad
from benchmarks.order import balanced
from benchmarks.progress import progress_bar

#: What is new about a request: which of two images and which of two texts it has, in this order.
STATES = {
    "cold": (0, 0),
    "other text": (0, 1),
    "repeated text": (1, 0),
    "both seen": (1, 1),
}


@dataclass(frozen=True)
class Case:
    """How a request is pruned."""

    method: str
    budget: int


@dataclass(frozen=True)
class Request:
    """One request. ``other_load``: cores that other processes kept busy in its repetition."""

    repetition: int
    case: Case
    state: str
    answer: Answer
    other_load: float


def measure(
    engine: Engine,
    settings: Settings,
    cases: Sequence[Case],
    states: Mapping[str, tuple[int, int]],
    console: Console,
) -> list[Request]:
    """Ask everything once to warm up, then once a repetition.

    In each, every case gets two images and two texts of its own and asks ``states`` of them (see
    :data:`STATES`); no case gains from the order.
    """
    questions, requests = Questions(settings.seed), []
    with progress_bar(console, 52) as progress:
        task = progress.add_task("", total=(1 + settings.repetitions) * len(cases) * len(states))
        for repetition in range(-1, settings.repetitions):
            other_load, answers = OtherLoad(), []
            for case in balanced(cases, repetition):
                images = [questions.image() for _ in range(2)]
                texts = [questions.text() for _ in range(2)]
                for state, (image, text) in states.items():
                    place = "warming up" if repetition < 0 else f"repetition {repetition + 1}"
                    what = f"{place}: {case.method}, budget {case.budget}, {state}"
                    progress.update(task, description=what)
                    answer = engine.ask(
                        images[image], texts[text], case.method, case.budget, settings.output_tokens
                    )
                    answers.append((case, state, answer))
                    progress.advance(task)
            if repetition >= 0:
                load = other_load.cores()
                requests += [Request(repetition, *answer, load) for answer in answers]
    return requests

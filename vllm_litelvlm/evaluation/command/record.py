"""Answers on disk, each written as soon as it is there: an evaluation can be taken up again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_litelvlm.evaluation.command.settings import EvaluationError

NAME = "answers.jsonl"


@dataclass(frozen=True)
class Answered:
    """One condition's answer to one sample, and what it is worth.

    ``image`` tells images apart; ``score`` 0 to 1, ``iou`` of boxes; ``took`` is the seconds of
    all that was asked together, divided by their number.
    """

    condition: str
    sample: str
    kind: str
    image: int
    text: str
    score: float
    iou: float | None
    prompt_tokens: int
    visual_tokens: int
    took: float


@dataclass
class Record:
    """The answers of an evaluation. The file's first line says what was asked, and of what."""

    path: Path
    answers: list[Answered] = field(default_factory=list)
    _known: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def begin(cls, folder: Path, identity: Mapping[str, Any]) -> "Record":
        """Start anew; answers that the folder holds are lost."""
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder / NAME)
        record.path.write_text(_json({"identity": identity}) + "\n", encoding="utf-8")
        return record

    @classmethod
    def resume(cls, folder: Path, identity: Mapping[str, Any]) -> "Record":
        """Take up the folder's answers.

        Raises EvaluationError where there are none, or where they are of another ``identity``.
        """
        record = cls(folder / NAME)
        text = record.path.read_text(encoding="utf-8") if record.path.is_file() else ""
        if "\n" not in text:
            raise EvaluationError(
                f"{record.path} has no answers to go on from; leave --resume out."
            )
        whole = text[: text.rindex("\n") + 1]
        if whole != text:  # it ended while a line was written
            record.path.write_text(whole, encoding="utf-8")
        first, *others = map(json.loads, whole.split("\n")[:-1])
        _check_same(first["identity"], json.loads(_json(identity)), record.path)
        for line in others:
            record._remember(Answered(**line))
        return record

    def add(self, answer: Answered) -> None:
        """Write one answer down."""
        self._remember(answer)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json(asdict(answer)) + "\n")

    def has(self, condition: str, sample: str) -> bool:
        """Whether that answer is there."""
        return (condition, sample) in self._known

    def count(self, condition: str) -> int:
        """How many answers of a condition are there."""
        return sum(answer.condition == condition for answer in self.answers)

    def _remember(self, answer: Answered) -> None:
        self.answers.append(answer)
        self._known.add((answer.condition, answer.sample))


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        told = "; ".join(
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in different
        )
        raise EvaluationError(
            f"{path} cannot be gone on from: {told}. Give the same settings, or leave --resume out "
            "to begin anew."
        )


def _json(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)

"""Answers on disk, each written as soon as it is there: an evaluation can be taken up again."""

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

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

    @property
    def key(self) -> tuple[str, str]:
        """The condition and the sample."""
        return self.condition, self.sample


class Line(Protocol):
    """What is written down in one line; a dataclass of what JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Hashable:
        """What tells it apart."""


Kind = TypeVar("Kind", bound=Line)


class Journal(Generic[Kind]):
    """Lines on disk. The file's first one says what was asked, and of what."""

    #: The class of the lines.
    kind: ClassVar[Any]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[Kind] = []
        self._known: dict[Hashable, Kind] = {}

    @classmethod
    def begin(cls, folder: Path, identity: Mapping[str, Any]) -> Self:
        """Start anew; answers that the folder holds are lost."""
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder / NAME)
        record.path.write_text(_json({"identity": identity}) + "\n", encoding="utf-8")
        return record

    @classmethod
    def resume(cls, folder: Path, identity: Mapping[str, Any]) -> Self:
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
            record._remember(cls.kind(**line))
        return record

    def add(self, answer: Kind) -> None:
        """Write one answer down."""
        self._remember(answer)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json(asdict(answer)) + "\n")

    def known(self, key: Hashable) -> bool:
        """Whether an answer with that key is there."""
        return key in self._known

    def of(self, key: Hashable) -> Kind:
        """The answer with that key, which must be there."""
        return self._known[key]

    def _remember(self, answer: Kind) -> None:
        self.answers.append(answer)
        self._known[answer.key] = answer


class Record(Journal[Answered]):
    """The answers of an evaluation."""

    kind = Answered

    def has(self, condition: str, sample: str) -> bool:
        """Whether that answer is there."""
        return self.known((condition, sample))

    def count(self, condition: str) -> int:
        """How many answers of a condition are there."""
        return sum(answer.condition == condition for answer in self.answers)


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

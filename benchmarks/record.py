"""Measured blocks on disk, each written as soon as it is measured: a run can be taken up again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.client import Block, MeasurementError, Timing
from benchmarks.engine import Capacity
from benchmarks.settings import Case

NAME = "blocks.jsonl"


@dataclass
class Record:
    """The blocks of a run. The file's first line says what was measured, and on what.

    ``capacities`` are of each server; ``sittings`` counts how often the servers were started.
    """

    path: Path
    blocks: list[Block] = field(default_factory=list)
    capacities: dict[str, Capacity] = field(default_factory=dict)
    sittings: int = 0

    @classmethod
    def begin(cls, folder: Path, identity: Mapping[str, Any]) -> "Record":
        """Start anew; blocks that the folder holds are lost."""
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder / NAME)
        record.path.write_text("")
        record._write("identity", identity)
        return record

    @classmethod
    def resume(cls, folder: Path, identity: Mapping[str, Any]) -> "Record":
        """Take up the folder's blocks.

        Raises MeasurementError where there are none, or where they are of another ``identity``.
        """
        record = cls(folder / NAME)
        text = record.path.read_text() if record.path.is_file() else ""
        if "\n" not in text:
            raise MeasurementError(
                f"{record.path} has no blocks to go on from; leave --resume out."
            )
        whole = text[: text.rindex("\n") + 1]
        if whole != text:  # it ended while a line was written
            record.path.write_text(whole)
        first, *others = map(json.loads, whole.splitlines())
        _check_same(first["identity"], json.loads(_json(identity)), record.path)
        for line in others:
            if "capacities" in line:
                found = line["capacities"]
                record.capacities = {name: Capacity(**values) for name, values in found.items()}
                record.sittings += 1
            else:
                record.blocks.append(_block(line["block"]))
        return record

    def add_sitting(self, capacities: dict[str, Capacity]) -> None:
        self.capacities, self.sittings = capacities, self.sittings + 1
        self._write("capacities", {name: asdict(value) for name, value in capacities.items()})

    def add(self, block: Block) -> None:
        self.blocks.append(block)
        self._write("block", asdict(block))

    def has(self, round: int, case: Case, condition: str) -> bool:
        return any((b.round, b.case, b.condition) == (round, case, condition) for b in self.blocks)

    def _write(self, what: str, value: object) -> None:
        with self.path.open("a") as file:
            file.write(_json({what: value}) + "\n")


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        told = "; ".join(
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in different
        )
        raise MeasurementError(
            f"{path} cannot be gone on from: {told}. Give the same settings, or leave --resume out "
            "to begin anew."
        )


def _json(value: object) -> str:
    return json.dumps(value, default=str)


def _block(values: dict[str, Any]) -> Block:
    timings = tuple(Timing(**timing) for timing in values["timings"])
    return Block(**{**values, "case": Case(**values["case"]), "timings": timings})

"""What was measured, on disk as soon as it is: a run that is cut off leaves what it had."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.selection_rounds import Block as MethodBlock

NAME = "blocks.jsonl"


@dataclass(frozen=True)
class ServingBlock:
    """Requests of one group and round under one condition (by its name).

    ``first_tokens``: seconds from sending to the first token of every request. ``busiest``: roles
    of the server's busiest processes and the cores that each kept busy. Of /metrics: seconds of
    guidance and of selection, the encoder batches of these, and the images that the vision tower
    saw. ``busiest_client`` and ``other_load`` are in cores, too.
    """

    group: str
    round: int
    condition: str
    clients: int
    seconds: float
    first_tokens: tuple[float, ...]
    prompt_tokens: float
    failures: tuple[str, ...]
    busiest: tuple[tuple[str, float], ...]
    busiest_client: float
    guidance_seconds: float
    selection_seconds: float
    encoder_batches: int
    encoded_images: int
    other_load: float

    @property
    def requests_per_second(self) -> float:
        return len(self.first_tokens) / self.seconds


@dataclass
class Journal:
    """A run's blocks. ``waits``: where a method makes the host wait for the device, by method.

    ``way``: how the servers were started; ``troubles`` are sentences for the reader.
    """

    path: Path
    methods: list[MethodBlock] = field(default_factory=list)
    waits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    serving: list[ServingBlock] = field(default_factory=list)
    way: str | None = None
    troubles: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, folder: Path) -> "Journal":
        """Start anew; blocks that the folder holds are lost."""
        folder.mkdir(parents=True, exist_ok=True)
        journal = cls(folder / NAME)
        journal.path.write_text("")
        return journal

    def add_method_block(self, block: MethodBlock) -> None:
        self.methods.append(block)
        self._write("methods", asdict(block))

    def add_waits(self, method: str, waits: tuple[str, ...]) -> None:
        self.waits[method] = waits
        self._write("waits", {method: waits})

    def add_serving_block(self, block: ServingBlock) -> None:
        self.serving.append(block)
        self._write("serving", asdict(block))

    def add_way(self, way: str) -> None:
        self.way = way
        self._write("way", way)

    def add_trouble(self, told: str) -> None:
        """The reader gets its first line, the file all of it."""
        self.troubles.append(told.partition("\n")[0].rstrip(":"))
        self._write("trouble", told)

    def _write(self, what: str, value: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({what: value}) + "\n")

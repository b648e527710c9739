"""A bar for what takes long."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class Bar:
    """A running bar."""

    progress: Progress
    task: TaskID

    def tell(self, what: str) -> None:
        """What is being done."""
        self.progress.update(self.task, description=what)

    def advance(self, done: float) -> None:
        """So much more is done."""
        self.progress.advance(self.task, done)


@contextmanager
def progress_bar(console: Console, unit: str, total: float) -> Iterator[Bar]:
    """A bar of ``total`` units."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=1) as progress:
        yield Bar(progress, progress.add_task("", total=total))

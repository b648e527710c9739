"""How far a measurement is."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bar(console: Console, width: int, unit: str = "") -> Progress:
    """A bar behind a description of so many characters.

    Drawn seldom, as drawing takes time from the cores that are measured.
    """
    columns = (
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn(unit)] if unit else []),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, refresh_per_second=1)

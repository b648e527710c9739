"""What the analyses' plots have in common."""

from pathlib import Path
from typing import Any

REFERRED_COLOUR, OTHER_COLOUR = "#e22222", "#5b7a99"


def new_figure(width: float, height: float) -> Any:
    """An empty figure that no window shows; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path, title: str) -> None:
    """Write a figure with its title."""
    figure.suptitle(title, fontsize="medium", color="0.25")
    figure.savefig(path, dpi=130)

"""Contact sheets, one a method: pictures with the right masks and the predicted ones."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, Condition
from vllm_litelvlm.evaluation.command.masks.names import file_name
from vllm_litelvlm.evaluation.masks.metrics import overlap

Mask = NDArray[np.bool_]

#: Pixels of both masks, of the predicted one alone, and of the right one alone.
_HIT, _EXTRA, _MISSED = (35, 139, 69), (217, 72, 1), (33, 113, 181)
_TINT = 0.6
#: Of what belongs to no mask.
_FADED = 0.45
#: Inches of a picture's longer side, and pixels that this is drawn from at most.
_SIDE, _PIXELS = 2.1, 480


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture, an expression about it, its right mask and those of conditions by their names."""

    picture: Image.Image
    expression: str
    truth: Mask
    predicted: Mapping[str, Mask]


def draw_sheets(
    shown: Sequence[Shown], conditions: Sequence[Condition], folder: Path, title: str
) -> None:
    """A sheet a method, with the right masks, those of all tokens, and those of falling budgets."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = dict.fromkeys(one.method.label for one in conditions)
    others = [label for label in labels if label != ALL_TOKENS]
    for label in others or [ALL_TOKENS]:
        own = [one for one in conditions if one.method.label in (ALL_TOKENS, label)]
        file = folder / f"{file_name(label)}.png"
        _draw(shown, own, file, f"{title}, {label}")


def _draw(shown: Sequence[Shown], conditions: Sequence[Condition], file: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = 2 + len(conditions)
    heights = [one.picture.height / max(one.picture.size) for one in shown]
    size = (_SIDE * columns, sum(_SIDE * height + 0.45 for height in heights) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), columns, squeeze=False, height_ratios=heights)
    for one, line in zip(shown, axes, strict=True):
        _show(line[0], _small(np.asarray(one.picture.convert("RGB"))))
        _show(line[1], coloured(one.picture, one.truth, one.truth))
        line[0].set_xlabel("\n".join(textwrap.wrap(one.expression, 34)), fontsize="small")
        for cell, condition in zip(line[2:], conditions, strict=True):
            mask = one.predicted[condition.name]
            _show(cell, coloured(one.picture, mask, one.truth))
            cell.set_xlabel(f"IoU {overlap(mask, one.truth).iou:.2f}", fontsize="small")
    budgets = [one.budget for one in conditions]
    heads = ["all tokens" if budget is None else f"{budget} tokens" for budget in budgets]
    for cell, head in zip(axes[0], ["picture", "right mask", *heads], strict=True):
        cell.set_title(head, fontsize="medium")
    names = {"right": _HIT, "too much": _EXTRA, "missed": _MISSED}
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=name)
        for name, colour in names.items()
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    figure.suptitle(title, fontsize="small", color="0.3")
    figure.savefig(file, dpi=130)


def _show(axes: Any, pixels: NDArray[np.uint8]) -> None:
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def coloured(picture: Image.Image, predicted: Mask, truth: Mask) -> NDArray[np.uint8]:
    """The picture, uint8 [height, width, 3]: pale and grey but where either mask is."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    grey = np.broadcast_to(pixels.mean(axis=-1, keepdims=True), pixels.shape)
    drawn = 255 - _FADED * (255 - grey)
    for where, colour in (
        (predicted & truth, _HIT),
        (predicted & ~truth, _EXTRA),
        (truth & ~predicted, _MISSED),
    ):
        drawn[where] = (1 - _TINT) * pixels[where] + _TINT * np.array(colour, np.float32)
    return _small(drawn.round().astype(np.uint8))


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    image.thumbnail((_PIXELS, _PIXELS))
    return np.asarray(image)

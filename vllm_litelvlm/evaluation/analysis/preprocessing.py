"""Images and masks as the vision tower sees them, by the checkpoint's own image processor."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vllm_litelvlm.errors import CompatibilityError, OptionsError


@dataclass(frozen=True)
class Pixels:
    """An image as a tower takes it, float32, and the grid of its cells.

    ``values`` are [3, side, side] where all images are squares of one size, else
    [patches, channels of a patch], cell by cell.
    """

    values: Tensor
    rows: int
    columns: int


class Preprocessor(ABC):
    """An image processor, and the cells that its pixels are cut into.

    A cell is what has a score: a patch, or the patches that are merged into one visual token.

    Args:
        image_processor: of transformers.
        cell: pixels a side of a cell.
    """

    def __init__(self, image_processor: Any, cell: int) -> None:
        self._processor = image_processor
        self.cell = cell

    @property
    def cells(self) -> int | None:
        """How many every image has; None where its size decides."""
        return None

    @abstractmethod
    def pixels(self, image: Image.Image) -> Pixels:
        """What the tower takes. Raises OptionsError for an image that the processor refuses."""

    @abstractmethod
    def _plain(self, image: Image.Image, **options: Any) -> NDArray[np.float32]:
        """The pixels under the cells, neither scaled nor normalised, [height, width, 3]."""

    def seen(self, image: Image.Image) -> Image.Image:
        """The pixels under the cells, resized and cropped, RGB."""
        plain = self._plain(image.convert("RGB"))
        return Image.fromarray(plain.clip(0, 255).round().astype(np.uint8))

    def coverage(self, mask: NDArray[np.bool_]) -> Tensor:
        """How much of each cell a mask covers, float32 [cells].

        The mask takes the image's way through the processor, as a black and white picture.
        Bilinear resizing averages, and unlike bicubic it does not overshoot at edges.
        """
        picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
        white = self._plain(picture, resample=Image.Resampling.BILINEAR)[:, :, 0] / 255
        rows, columns = (length // self.cell for length in white.shape)
        tiles = white.reshape(rows, self.cell, columns, self.cell)
        return torch.from_numpy(tiles.mean(axis=(1, 3)).reshape(-1))

    def referred(self, image: Image.Image, mask: NDArray[np.bool_]) -> Tensor:
        """Which cells a mask of the image covers by more than half, bool [cells].

        Raises OptionsError for a mask that is not the image's.
        """
        if mask.shape != (image.height, image.width):
            raise OptionsError(
                f"A mask of {' x '.join(map(str, mask.shape))} does not fit its image; expected "
                f"{image.height} x {image.width} (height x width)."
            )
        return self.coverage(mask) > 0.5


class SquarePreprocessor(Preprocessor):
    """Every image becomes a square of one size, whose cells are patches.

    Args:
        image_processor: of transformers.
        side: pixels a side of the square that the tower reads.
        patch: pixels a side of a patch. Pixels past the last whole patch are under none.
    """

    def __init__(self, image_processor: Any, side: int, patch: int) -> None:
        super().__init__(image_processor, patch)
        self._side = side
        self.grid = side // patch

    @property
    def cells(self) -> int:
        """See :attr:`Preprocessor.cells`."""
        return self.grid**2

    def pixels(self, image: Image.Image) -> Pixels:
        """See :meth:`Preprocessor.pixels`."""
        return Pixels(self._process(image.convert("RGB")), self.grid, self.grid)

    def _plain(self, image: Image.Image, **options: Any) -> NDArray[np.float32]:
        values = self._process(image, do_rescale=False, do_normalize=False, **options)
        covered = self.grid * self.cell
        plain: NDArray[np.float32] = values.float().permute(1, 2, 0).numpy()
        return plain[:covered, :covered]

    def _process(self, image: Image.Image, **options: Any) -> Tensor:
        made = self._processor([image], return_tensors="pt", **options)
        values: Tensor = made["pixel_values"][0]
        if values.shape[-2:] != (self._side, self._side):
            raise CompatibilityError(
                f"The image processor gives {values.shape[-2]} x {values.shape[-1]} pixels; the "
                f"vision tower reads {self._side} x {self._side}. Use the checkpoint's own "
                "preprocessor_config.json."
            )
        return values


class AnySizePreprocessor(Preprocessor):
    """An image nearly keeps its shape, and its size decides how many cells it has.

    Args:
        image_processor: of transformers, a Qwen-VL's.
        patch: pixels a side of the tower's patches.
        merge: patches a side of a cell.
    """

    def __init__(self, image_processor: Any, patch: int, merge: int) -> None:
        super().__init__(image_processor, patch * merge)
        self._patch, self._merge = patch, merge
        own = image_processor.patch_size, image_processor.merge_size
        if own != (patch, merge):
            raise CompatibilityError(
                f"The image processor makes cells of {own[1]} x {own[1]} patches of {own[0]} "
                f"pixels; the vision tower reads {merge} x {merge} of {patch}. Use the "
                "checkpoint's own preprocessor_config.json."
            )

    def pixels(self, image: Image.Image) -> Pixels:
        """See :meth:`Preprocessor.pixels`."""
        return self._process(image.convert("RGB"))

    def _plain(self, image: Image.Image, **options: Any) -> NDArray[np.float32]:
        made = self._process(image, do_rescale=False, do_normalize=False, **options)
        grid = (made.rows, made.columns, self._merge, self._merge)
        # Patches repeat their picture for every frame that a video's would have.
        patches = made.values.float().unflatten(1, (3, -1, self._patch, self._patch))[:, :, 0]
        cells = patches.unflatten(0, grid)  # and then channels, height, width
        pixels = cells.permute(0, 2, 5, 1, 3, 6, 4).flatten(0, 2).flatten(1, 3)
        plain: NDArray[np.float32] = pixels.numpy()
        return plain

    def _process(self, image: Image.Image, **options: Any) -> Pixels:
        try:
            made = self._processor([image], return_tensors="pt", **options)
        except ValueError as error:
            raise OptionsError(
                f"The image processor refuses an image of {image.width} x {image.height} pixels "
                f"(width x height): {error}. Crop it, or leave it out."
            ) from None
        sides: Sequence[int] = made["image_grid_thw"][0, 1:].tolist()
        rows, columns = (side // self._merge for side in sides)
        return Pixels(made["pixel_values"], rows, columns)

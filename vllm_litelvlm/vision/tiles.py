"""How LLaVA-NeXT lays out an image: a base view of all of it, and rows of its tiles' patches.

An image is shrunk to a square, the base, and cut into tiles of the same size, of which padding is
cut off behind the tower. The language model gets the base's patches, then those of all tiles
together row by row, each row with a newline behind it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Pruner, Selection, Signal, Signals, to_device
from vllm_litelvlm.pruning.ranking import highest, raster


@dataclass(frozen=True)
class TileLayout:
    """Of an image whose base and tiles have ``side`` patches a side.

    ``down`` and ``across`` count tiles, ``rows`` and ``columns`` their patches without padding.

    Methods number *patches*: those of the base, then those of the tiles, in raster order of the
    whole picture. The language model's tokens have *places*: the same with the newlines among them.
    """

    side: int
    down: int
    across: int
    rows: int
    columns: int

    @classmethod
    @lru_cache(maxsize=16_384)
    def of(
        cls, height: int, width: int, pinpoints: tuple[tuple[int, int], ...], tile: int, patch: int
    ) -> "TileLayout":
        """Of an image of some size.

        Args:
            height: of the image in pixels.
            width: of the image.
            pinpoints: (height, width) of the canvases that tiles are cut from, in pixels.
            tile: a tile's side in pixels.
            patch: a patch's side in pixels.
        """
        down, across = get_anyres_image_grid_shape((height, width), [*map(list, pinpoints)], tile)
        side = tile // patch
        whole = torch.empty(1, down * side, across * side, device="meta")
        _, rows, columns = unpad_image(whole, (height, width)).shape
        return cls(side, down, across, rows, columns)

    @property
    def tiles(self) -> int:
        """Squares that go through the tower, the base first."""
        return 1 + self.down * self.across

    @property
    def base(self) -> int:
        """Patches of the base, and of any tile with its padding."""
        return self.side**2

    @property
    def patches(self) -> int:
        """All that methods choose from."""
        return self.base + self.rows * self.columns

    @property
    def tokens(self) -> int:
        """All that the language model gets of the whole image."""
        return self.patches + self.rows

    def newlines(self, budget: int) -> int:
        """How many of a budget's tokens are newlines: their share of all tokens, half rounds up."""
        return (2 * budget * self.rows + self.tokens) // (2 * self.tokens)

    def patch_budget(self, budget: int) -> int:
        """How many of a budget's tokens a method chooses, from 1 to :attr:`patches`."""
        return budget - self.newlines(budget)

    def count(self, pruner: Pruner, budget: int) -> int:
        """How many tokens the language model gets by a method and a budget."""
        return pruner.output_count(self.patch_budget(budget)) + self.newlines(budget)

    def patch_index(self) -> Tensor:
        """Of each patch, its number among those of all tiles one by one, int64 [patches]."""
        tiles = torch.arange(self.base, self.tiles * self.base)
        by_tile = tiles.view(self.down, self.across, self.side, self.side)
        grid = by_tile.transpose(1, 2).reshape(self.down * self.side, self.across * self.side)
        top, left = (len(grid) - self.rows) // 2, (grid.shape[1] - self.columns) // 2
        shown = grid[top : top + self.rows, left : left + self.columns]
        return torch.cat([torch.arange(self.base), shown.flatten()])

    def points(self) -> Tensor:
        """As :attr:`Signals.points`: base and tiles are planes of their own."""
        base = torch.cartesian_prod(torch.arange(self.side), torch.arange(self.side))
        tiles = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns))
        planes = torch.arange(2).repeat_interleave(torch.tensor([len(base), len(tiles)]))
        return torch.cat([torch.cat([base, tiles]), planes[:, None]], dim=1).float()

    def with_newlines(self, selection: Selection, count: int) -> "LinedSelection":
        """What was selected of an image, and ``count`` newlines, by their places.

        The rows of which most patches are kept get one, upper rows first. It stands behind the last
        of its row's, in the method's order; of a row without, behind the last of what is above.
        """
        patches = selection.indices
        row = (patches - self.base).div(max(1, self.columns), rounding_mode="floor")
        in_rows = (patches >= self.base) & (patches < self.patches)
        row = torch.where(in_rows, row, -1)
        places = patches + torch.where(patches < self.patches, row.clamp(min=0), self.rows)
        kept = row.new_zeros(self.rows + 1).index_add(0, row + 1, torch.ones_like(row))[1:]
        lines = raster(highest(kept[None], count))[0]
        line_places = self.base + (lines + 1) * (self.columns + 1) - 1
        number = torch.arange(len(patches), device=patches.device)
        own = torch.where(row == lines[:, None], number, -1).amax(dim=1)
        above = torch.where(places < line_places[:, None], number, -1).amax(dim=1)
        behind = torch.where(own >= 0, own, above)
        order = torch.cat([2 * number, 2 * behind + 1]).argsort(stable=True)
        nobody = torch.zeros_like(lines, dtype=torch.bool)
        return LinedSelection(
            selection.tokens,
            torch.cat([places, line_places])[order],
            torch.cat([selection.guided, nobody])[order],
            order,
        )


@dataclass(frozen=True)
class LinedSelection(Selection):
    """Of one image: ``tokens`` lack the newlines, which ``indices`` and ``guided`` have.

    ``indices`` are places in the whole image. ``order``, int64 [kept]: which is which, of the
    tokens and then the newlines.
    """

    order: Tensor


def pooled(tiles: Signals, layout: TileLayout) -> Signals:
    """Signals of whole images, from those of their tiles, image by image.

    Nothing is rescaled. What compares a patch with a text, and features and keys, mean the same in
    every tile; by TOKEN_COSINE each tile has sharpest tokens of its own. Attention and context are
    shares of what a tile's own [CLS] looks at, so base and tiles start equal, and what looks at
    padding is lost. The one [CLS] of an image is the base's.
    """
    images = tiles.images // layout.tiles
    index = _on_device(layout, "patch_index", tiles.device)
    values = {}
    for name, value in tiles.values.items():
        by_image = value.unflatten(0, (images, layout.tiles))
        if name in TEXT_SIGNALS:
            values[name] = by_image.transpose(1, 2).flatten(2).index_select(2, index)
            continue
        patches = by_image[:, :, -tiles.patches :].flatten(1, 2).index_select(1, index)
        if name is Signal.FEATURES:
            patches = torch.cat([by_image[:, 0, : -tiles.patches], patches], dim=1)
        values[name] = patches
    return replace(
        tiles,
        images=images,
        patches=layout.patches,
        text_counts=tiles.text_counts[:: layout.tiles],
        word_counts=tiles.word_counts[:: layout.tiles],
        values=values,
        tower=None,
        points=_on_device(layout, "points", tiles.device),
    )


@lru_cache(maxsize=256)
def _on_device(layout: TileLayout, name: str, device: torch.device) -> Tensor:
    """A table of a layout."""
    with torch.device("cpu"):
        table: Tensor = getattr(layout, name)()
    return to_device(table.tolist(), device, table.dtype)

"""LLaVA-NeXT's layout against transformers' own packing, and newlines against a slow derivation."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    image_size_to_num_patches,
)

from tests.pruning.helpers import random_signals
from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner, method_names
from vllm_litelvlm.vision.tiles import TileLayout, pooled

PUBLISHED = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
#: (height, width): portrait, landscape, square, tiny, and as long and thin as can be.
SIZES = [
    *[(672, 672), (336, 336), (480, 640), (640, 480), (333, 500), (1080, 1920), (1920, 1080)],
    *[(1, 1), (2, 3), (17, 5), (5, 17), (40, 40), (336, 1008), (1008, 336), (335, 337)],
    *[(10, 2000), (2000, 10), (1, 3000), (3000, 1), (3, 4001), (4001, 3), (100, 299), (299, 100)],
    *[(671, 672), (672, 671), (673, 1344), (1343, 673), (4000, 4000), (2000, 3000)],
]


def random_sizes() -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(int(2 ** draw.uniform(0, 12)), int(2 ** draw.uniform(0, 12))) for _ in range(300)]


def layout_of(size: tuple[int, int], tile: int = 336) -> TileLayout:
    pinpoints = tuple((h * tile // 336, w * tile // 336) for h, w in PUBLISHED)
    return TileLayout.of(*size, pinpoints, tile, 14)


def packed(size: tuple[int, int], tile: int = 336) -> Tensor:
    """By transformers: numbers of the tiles' patches, -1 for a newline."""
    pinpoints = [[h * tile // 336, w * tile // 336] for h, w in PUBLISHED]
    tower = {"image_size": tile, "patch_size": 14}
    config = LlavaNextConfig(vision_config=tower, image_grid_pinpoints=pinpoints)
    tiles = image_size_to_num_patches(list(size), pinpoints, tile)
    numbers = torch.arange(tiles * (tile // 14) ** 2).view(tiles, -1, 1).double()
    [tokens], _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [numbers], [list(size)], "default", -torch.ones(1).double()
    )
    return tokens[:, 0].long()


def whole(layout: TileLayout) -> Selection:
    """All patches of one image; its only feature is its number among all tiles' patches."""
    return Selection(
        layout.patch_index()[:, None],
        torch.arange(layout.patches),
        torch.ones(layout.patches, dtype=torch.bool),
    )


@pytest.mark.parametrize("size", [*SIZES, *random_sizes()])
def test_tokens_are_where_transformers_packs_them(size: tuple[int, int]) -> None:
    for tile in (112, 336):
        layout, expected = layout_of(size, tile), packed(size, tile)
        assert layout.tokens == len(expected)
        assert layout.tiles == image_size_to_num_patches(
            list(size), [[h * tile // 336, w * tile // 336] for h, w in PUBLISHED], tile
        )
        kept = layout.with_newlines(whole(layout), layout.newlines(layout.tokens))
        both = torch.cat([kept.tokens[:, 0], -torch.ones(layout.rows).long()])
        assert torch.equal(both[kept.order], expected)
        assert torch.equal(kept.indices, torch.arange(layout.tokens))
        assert torch.equal(kept.guided, expected >= 0)


@pytest.mark.parametrize("size", SIZES)
def test_budget_is_shared_in_proportion(size: tuple[int, int]) -> None:
    layout = layout_of(size)
    for budget in range(1, layout.tokens + 1):
        newlines, patches = layout.newlines(budget), layout.patch_budget(budget)
        assert newlines + patches == budget
        assert abs(newlines - budget * layout.rows / layout.tokens) <= 0.5
        assert 0 <= newlines <= layout.rows
        assert 1 <= patches <= layout.patches
        assert (patches == layout.patches) == (budget == layout.tokens)


def lined(layout: TileLayout, patches: list[int], count: int) -> list[int]:
    """Places of patches and newlines, one by one."""

    def row_of(patch: int) -> int | None:
        inside = layout.base <= patch < layout.patches
        return (patch - layout.base) // layout.columns if inside else None

    def place_of(patch: int) -> int:
        if patch >= layout.patches:
            return patch + layout.rows
        row = row_of(patch)
        return patch if row is None else patch + row

    def end_of(row: int) -> int:
        return layout.base + row * (layout.columns + 1) + layout.columns

    rows = [row_of(patch) for patch in patches]
    chosen = sorted(range(layout.rows), key=lambda row: (-rows.count(row), row))[:count]
    line_behind: dict[int, list[int]] = {}
    for row in sorted(chosen):
        own = [slot for slot, one in enumerate(rows) if one == row]
        above = [slot for slot, patch in enumerate(patches) if place_of(patch) < end_of(row)]
        line_behind.setdefault(max(own or above, default=-1), []).append(end_of(row))
    found = [*line_behind.get(-1, [])]
    for slot, patch in enumerate(patches):
        found += [place_of(patch), *line_behind.get(slot, [])]
    return found


@pytest.mark.parametrize("seed", range(60))
def test_newlines_go_to_the_rows_that_keep_most(seed: int) -> None:
    draw = random.Random(seed)
    layout = layout_of(draw.choice([s for s in SIZES if layout_of(s).columns]), 112)
    numbers = [-1, *range(layout.patches + 2)]
    if seed % 4 == 0:
        numbers = numbers[: layout.base]  # no row keeps any
    patches = draw.sample(numbers, draw.randint(1, len(numbers)))
    patches = sorted(patches) if seed % 2 else patches
    count = draw.randint(0, layout.rows)
    guided = torch.tensor([draw.random() < 0.5 for _ in patches])
    features = torch.randn(len(patches), 3)
    kept = layout.with_newlines(Selection(features, torch.tensor(patches), guided), count)
    assert kept.indices.tolist() == lined(layout, patches, count)
    assert torch.equal(kept.tokens, features)
    is_line = kept.order >= len(patches)
    assert int(is_line.sum()) == count
    assert torch.equal(kept.order[~is_line].sort().values, torch.arange(len(patches)))
    assert torch.equal(kept.guided[~is_line], guided[kept.order[~is_line]])
    assert not kept.guided[is_line].any()


def tile_signals(layout: TileLayout, text_counts: list[int]) -> Signals:
    counts = [count for count in text_counts for _ in range(layout.tiles)]
    return random_signals(counts, patches=layout.base)


def test_signals_of_an_image_are_those_of_its_tiles() -> None:
    layout = layout_of((300, 500), 112)
    tiles = tile_signals(layout, [2, 1, 3])
    images = pooled(tiles, layout)
    assert (images.images, images.patches, images.text_counts) == (3, layout.patches, [2, 1, 3])
    assert {*images.values} == {*tiles.values}
    for name, value in images.values.items():
        for image in range(3):
            for patch, number in enumerate(layout.patch_index().tolist()):
                tile, own = divmod(number, layout.base)
                source = tiles[name][image * layout.tiles + tile]
                if name in TEXT_SIGNALS:
                    assert torch.equal(value[image, :, patch], source[:, own])
                else:
                    shift = 1 if name is Signal.FEATURES else 0
                    assert torch.equal(value[image, patch + shift], source[own + shift])
    for image in range(3):
        first = tiles[Signal.FEATURES][image * layout.tiles, 0]
        assert torch.equal(images.cls_tokens[image, 0], first)


def test_base_and_tiles_are_planes_of_their_own() -> None:
    layout = layout_of((300, 500), 112)
    points = [tuple(map(int, one)) for one in layout.points().tolist()]
    base = [(row, column, 0) for row in range(8) for column in range(8)]
    rows = [(r, c, 1) for r in range(layout.rows) for c in range(layout.columns)]
    assert points == base + rows


@pytest.mark.parametrize("method", [name for name in method_names() if name != "tome"])
def test_every_method_gives_places_of_the_image(method: str) -> None:
    for size in ((300, 500), (900, 200), (500, 500)):
        layout = layout_of(size, 112)
        signals = pooled(tile_signals(layout, [1, 2]), layout)
        pruner = build_pruner(method, {})
        for budget in (1, 7, layout.tokens // 9, layout.tokens // 3, layout.tokens - 1):
            if method == "keep-all":
                budget = layout.tokens
            chosen = pruner.select(signals, layout.patch_budget(budget))
            for one in chosen.unbind():
                kept = layout.with_newlines(one, layout.newlines(budget))
                places = kept.indices.tolist()
                assert len(places) == len({*places}) == layout.count(pruner, budget) == budget
                assert {*places} <= {*pruner.places(layout.tokens)}

"""Which tokens were kept of the items seen last."""

import torch

from vllm_litelvlm.options import ServerOptions, parse_request_options
from vllm_litelvlm.plugin.kept import Kept, KeptTokens, Shape
from vllm_litelvlm.plugin.plan import Plan, WorkOrder


def kept(budget: int, *places: int, shape: Shape | None = (1, 24, 24)) -> Kept:
    options = parse_request_options({"budget": budget}, ServerOptions())
    order = WorkOrder.decode(WorkOrder.encode(Plan.decide(options, patches=576)))
    if not places:
        return Kept(order, b"k", 576, shape)
    indices = torch.tensor(places)
    return Kept(order, b"k", 576, shape, indices, indices > 100)


def test_kept_tokens_are_told_by_name_and_what_nobody_knows_is_none() -> None:
    remembered = KeptTokens()
    remembered.remember("a", kept(3, 7, 500, 8))
    told, unknown = remembered.told(["a", "b"])
    assert unknown is None
    assert told == {
        "picture": b"k".hex(),
        "method": "litelvlm",
        "layer": "whole",
        "tokens": 576,
        "shape": [1, 24, 24],
        "kept": [7, 500, 8],
        "guided": [False, True, False],
    }


def test_of_whole_pictures_all_tokens_are_told_frame_by_frame() -> None:
    remembered = KeptTokens()
    remembered.remember("image", kept(576, shape=None))
    remembered.remember("video", kept(576, shape=(4, 12, 12)))
    image, video = remembered.told(["image", "video"])
    assert image is not None
    assert video is not None
    assert image["kept"] == [*range(576)]
    assert image["shape"] is None
    assert video["kept"] == [*range(144)] * 4
    assert video["guided"] == [False] * 576


def test_what_was_encoded_longest_ago_goes_first() -> None:
    remembered = KeptTokens(most=2)
    for name in ("a", "b", "a", "c"):
        remembered.remember(name, kept(1, ord(name)))
    assert len(remembered) == 2
    assert [one is not None for one in remembered.told(["a", "b", "c"])] == [True, False, True]


def test_a_name_stands_for_what_it_was_encoded_to_last() -> None:
    remembered = KeptTokens()
    remembered.remember("a", kept(2, 1, 2))
    remembered.remember("a", kept(2, 3, 4))
    [told] = remembered.told(["a"])
    assert told is not None
    assert told["kept"] == [3, 4]

"""A picture is encoded once, whatever it comes as and whoever asks."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from torch import Tensor

from tests.grounding.conftest import noise
from vllm_litelvlm.grounding.features import FeatureCache
from vllm_litelvlm.grounding.picture import as_rgb, picture_key
from vllm_litelvlm.grounding.sam import Sam
from vllm_litelvlm.grounding.segmenter import Segmenter


@pytest.fixture
def segmenter(sam: Sam) -> Segmenter:
    return Segmenter(sam)


def counts(segmenter: Segmenter) -> tuple[int, int]:
    return segmenter.features.queries, segmenter.features.hits


def test_second_question_about_a_picture_encodes_nothing(
    segmenter: Segmenter, sam: Sam, prompts: Tensor, pictures: dict[str, Image.Image]
) -> None:
    picture = pictures["landscape"]
    first = segmenter.masks(picture, prompts[:1])
    again = segmenter.masks(picture.copy(), prompts[:1])
    assert counts(segmenter) == (2, 1)
    assert first[0].rle() == again[0].rle()
    assert len(segmenter.masks(picture, prompts)) == len(prompts)
    segmenter.masks(pictures["portrait"], prompts[:1])
    assert counts(segmenter) == (4, 2)
    assert segmenter.features.bytes == 2 * 4 * sam.prompt_width * 16 * 16


def test_pictures_are_the_same_where_sam_sees_the_same(
    segmenter: Segmenter, prompts: Tensor
) -> None:
    grey = noise(40, 30, "L")
    for picture in (grey, grey.convert("RGB"), grey.convert("RGBA")):
        segmenter.masks(picture, prompts[:1])
    assert counts(segmenter) == (3, 2)
    # The same indices into another palette, and the same bytes in another shape.
    palette = grey.convert("P")
    turned = palette.copy()
    turned.putpalette(palette.getpalette()[::-1])
    assert palette.tobytes() == turned.tobytes()
    reshaped = Image.frombytes("L", (30, 40), grey.tobytes())
    keys = {picture_key(as_rgb(each)) for each in (palette, turned, reshaped, grey)}
    assert len(keys) == 3


def test_threads_get_what_one_thread_gets(
    sam: Sam, prompts: Tensor, pictures: dict[str, Image.Image]
) -> None:
    names = ["square", "landscape", "portrait"]
    expected = {name: Segmenter(sam).masks(pictures[name], prompts[:3]) for name in names}
    shared = Segmenter(sam, FeatureCache(max_bytes=2 * 4 * sam.prompt_width * 16 * 16))
    with ThreadPoolExecutor(4) as pool:
        asked = [
            (name, pool.submit(shared.masks, pictures[name], prompts[:3])) for name in names * 4
        ]
        for name, answer in asked:
            for mask, wanted in zip(answer.result(60), expected[name], strict=True):
                assert mask.rle() == wanted.rle()
    assert len(shared.features) == 2

"""Pixels that are kept in the front end, and encoded images that need not be decoded again."""

import io
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile
from torch import Tensor
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO

from vllm_litelvlm.plugin import encoded
from vllm_litelvlm.plugin.pixels import Picture, PixelCache

DIGEST = partial(MultiModalHasher.hash_kwargs, "blake3")


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(noise).save(kept, format="JPEG")
    return kept.getvalue()


def stored(form: str, mode: str = "RGB", turned: int | None = None) -> bytes:
    """An image in some format, of which EXIF says how it is turned."""
    kept, exif = io.BytesIO(), Image.Exif()
    if turned is not None:
        exif[ExifTags.Base.Orientation] = turned
    image = Image.open(io.BytesIO(jpeg())).convert(mode)
    more = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    image.save(kept, format=form, **more)
    return kept.getvalue()


def loading_of_stock() -> Any:
    """What the plugin wraps."""
    return ImageMediaIO.load_bytes.__wrapped__  # type: ignore[attr-defined]


def pixels_of(picture: Picture) -> Tensor:
    """As many bytes as the picture has pixels."""
    image = picture.image
    assert isinstance(image, Image.Image)
    return torch.from_numpy(np.asarray(image.convert("L")).copy())


@pytest.fixture
def cache(installed: None, monkeypatch: pytest.MonkeyPatch) -> PixelCache:
    """A cache that is asked about encoded images, and no other."""
    monkeypatch.setattr(encoded, "_caches", encoded.WeakSet())
    found = PixelCache(10_000)
    encoded.look_in(found)
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pixels Pillow has decoded of each image, in order."""
    seen: list[int] = []
    load_file = ImageFile.ImageFile.load

    def noting_file(image: ImageFile.ImageFile) -> Any:
        if image.tile:
            seen.append(image.width * image.height)
        return load_file(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noting_file)
    return seen


def sent(data: bytes, cache: PixelCache, name: str | None = None) -> Picture:
    return Picture(ImageMediaIO().load_bytes(data), name, DIGEST, cache)


def test_image_that_comes_again_is_not_decoded(cache: PixelCache, decoded: list[int]) -> None:
    first = sent(jpeg(), cache)
    [pixels] = cache.get([first], pixels_of)
    assert decoded == [1200]
    again = sent(jpeg(), cache)
    assert isinstance(again._given, MediaWithBytes)
    assert again.key == first.key
    [found] = cache.get([again], pixels_of)
    assert found is pixels
    assert decoded == [1200]


def test_image_that_someone_looks_at_after_all_is_decoded_then(
    cache: PixelCache, decoded: list[int]
) -> None:
    [pixels] = cache.get([sent(jpeg(), cache)], pixels_of)
    again = ImageMediaIO().load_bytes(jpeg())
    assert decoded == [1200]
    assert (again.mode, again.media.size, again.original_bytes) == ("RGB", (40, 30), jpeg())
    assert np.array_equal(np.asarray(again.media), np.asarray(Image.open(io.BytesIO(jpeg()))))
    cache.clear()
    picture = Picture(again, None, DIGEST, cache)
    assert torch.equal(cache.get([picture], pixels_of)[0], pixels)


@pytest.mark.parametrize("what", ["turned", "grey", "with a palette"])
def test_image_that_vllm_turns_or_converts_is_decoded_every_time(
    cache: PixelCache, decoded: list[int], what: str
) -> None:
    given = {"turned": ("JPEG", "RGB", 6), "grey": ("PNG", "L"), "with a palette": ("PNG", "P")}
    data = stored(*given[what])
    decoded.clear()
    for times in (1, 2):
        picture = sent(data, cache)
        [pixels] = cache.get([picture], pixels_of)
        assert pixels.shape == ((40, 30) if what == "turned" else (30, 40))
        assert decoded == [1200] * times


def test_other_settings_of_decoding_make_another_image(cache: PixelCache) -> None:
    kept = io.BytesIO()
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(kept, format="PNG")
    white, red = ImageMediaIO(), ImageMediaIO(rgba_background_color=(255, 0, 0))
    first = Picture(white.load_bytes(kept.getvalue()), None, DIGEST, cache)
    cache.get([first], pixels_of)
    again = red.load_bytes(kept.getvalue())
    other = Picture(again, None, DIGEST, cache)
    assert other.key != first.key
    assert again.media.getpixel((0, 0)) == (255, 0, 0)


def test_what_pixels_depend_on_besides_makes_another_key(cache: PixelCache) -> None:
    image = ImageMediaIO().load_bytes(jpeg())
    digests = [DIGEST, partial(DIGEST, size=3)]
    paddings: list[Any] = [None, (0.1, 0.2, 0.3)]
    keys = {Picture(image, None, one, cache, pad, 24).key for one in digests for pad in paddings}
    assert len(keys) == 4


def test_encoded_image_is_hashed_once(cache: PixelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    data, hashed = jpeg(size=(200, 200)), []
    serialise = MultiModalHasher.serialize_item.__func__  # type: ignore[attr-defined]

    def noting(cls: Any, value: Any) -> Any:
        if value is data or getattr(value, "original_bytes", None) is data:
            hashed.append(value)
        return serialise(cls, value)

    monkeypatch.setattr(MultiModalHasher, "serialize_item", classmethod(noting))
    picture = sent(data, cache)
    cache.get([picture], pixels_of)
    assert (len(picture.key), len(picture.identity)) == (32, 7 + 64)
    assert len(hashed) == 1


def test_oldest_pixels_go_first_and_their_images_are_decoded_again(
    cache: PixelCache, decoded: list[int]
) -> None:
    for seed in range(9):  # of 1,200 bytes each, in 10,000
        cache.get([sent(jpeg(seed), cache)], pixels_of)
    assert (len(cache), len(decoded)) == (8, 9)
    cache.get([sent(jpeg(8), cache)], pixels_of)
    assert len(decoded) == 9
    cache.get([sent(jpeg(0), cache)], pixels_of)
    assert len(decoded) == 10
    assert len(cache._encoded) == len(cache) == 8


def test_pixels_are_kept_without_a_copy(cache: PixelCache) -> None:
    made: list[Tensor] = []

    def making(picture: Picture) -> Tensor:
        made.append(pixels_of(picture))
        return made[-1]

    [first] = cache.get([sent(jpeg(), cache)], making)
    [again] = cache.get([sent(jpeg(), cache)], making)
    assert first is again is made[0]


def test_equal_images_of_a_request_are_preprocessed_once(cache: PixelCache) -> None:
    calls: list[Picture] = []

    def making(picture: Picture) -> Tensor:
        calls.append(picture)
        return pixels_of(picture)

    pictures = [sent(jpeg(seed), cache) for seed in (0, 1, 0)]
    first, second, third = cache.get(pictures, making)
    assert len(calls) == 2
    assert first is third
    assert not torch.equal(first, second)


def test_cache_of_no_bytes_keeps_nothing(installed: None) -> None:
    none = PixelCache(0)
    none.get([Picture(ImageMediaIO().load_bytes(jpeg()), None, DIGEST, none)], pixels_of)
    assert len(none) == len(none._encoded) == 0


def test_image_that_is_broken_is_refused_as_by_stock(cache: PixelCache) -> None:
    for data in (b"no image", jpeg()[:200], jpeg()[:-500]):
        with pytest.raises(ValueError, match="Failed to load image"):
            ImageMediaIO().load_bytes(data)


def test_damaged_image_fares_as_with_stock_each_time(cache: PixelCache) -> None:
    stock = loading_of_stock()

    def fares(load: Any, data: bytes) -> Any:
        try:
            image = load(ImageMediaIO(), data)
        except ValueError as error:
            return str(error)[:20]
        cache.get([Picture(image, None, DIGEST, cache)], pixels_of)
        return np.asarray(image.media).tolist()

    def stops_pillow(data: bytes) -> bool:
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:
            return True
        return False

    saved = 0  # images of which vLLM makes the best
    for form in ("PNG", "JPEG", "WEBP"):
        data = stored(form, turned=1)
        for place in range(len(data) // 4, len(data), len(data) // 20):
            damaged = data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
            wanted = fares(stock, damaged)
            cache.clear()
            for _ in range(2):
                assert fares(ImageMediaIO.load_bytes, damaged) == wanted
            saved += isinstance(wanted, list) and stops_pillow(damaged)
    assert saved > 0


def test_image_that_is_known_counts_among_the_bytes_of_its_request(cache: PixelCache) -> None:
    """vLLM 0.33 bounds what a request's media come to; each request has a count of its own."""

    class Count:
        def __init__(self) -> None:
            self.lock, self.used = threading.Lock(), 0  # no more to be pickled than vLLM's

        def charge(self, size: int) -> None:
            self.used += size
            if self.used > 1_000_000:
                raise ValueError("too many")

    def load(count: Count) -> Any:
        media_io = ImageMediaIO()
        media_io.decoded_budget = count
        return media_io.load_bytes(jpeg())

    one, other = Count(), Count()
    first = load(one)
    cache.get([Picture(first, None, DIGEST, cache)], pixels_of)
    assert load(other).litelvlm_digest == first.litelvlm_digest
    assert one.used == other.used == first.media.width * first.media.height * 4
    other.used = 1_000_000
    with pytest.raises(ValueError, match="too many"):
        load(other)


@pytest.mark.parametrize("first", [None, 1])
def test_png_may_say_behind_its_pixels_how_it_stands(cache: PixelCache, first: int | None) -> None:
    stock = loading_of_stock()
    turned, plain = stored("PNG", turned=6), stored("PNG", turned=first)
    start = turned.index(b"eXIf") - 4
    chunk = turned[start : turned.index(b"IDAT") - 4]
    end = plain.index(b"IEND") - 4
    late = plain[:end] + chunk + plain[end:]
    wanted = np.asarray(stock(ImageMediaIO(), late).media)
    for _ in range(2):
        image = ImageMediaIO().load_bytes(late)
        assert np.array_equal(np.asarray(image.media), wanted)
        cache.get([Picture(image, None, DIGEST, cache)], pixels_of)


def test_image_of_more_pixels_than_allowed_is_refused_undecoded(
    cache: PixelCache, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1199")
    images = [stored(form) for form in ("JPEG", "PNG", "WEBP")]
    decoded.clear()
    for data in images:
        with pytest.raises(ValueError, match="exceed the maximum of 1199 pixels"):
            ImageMediaIO().load_bytes(data)
    assert decoded == []


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_image_is_what_stock_decodes(cache: PixelCache, form: str) -> None:
    stock = loading_of_stock()
    for turned in (None, 1, 3, 6):
        for mode in ("RGB", "L", "RGBA", "P"):
            if form == "JPEG" and mode in ("RGBA", "P"):
                continue
            data = stored(form, mode, turned)
            for _ in range(2):
                found, wanted = ImageMediaIO().load_bytes(data), stock(ImageMediaIO(), data)
                assert np.array_equal(np.asarray(found.media), np.asarray(wanted.media))
                assert (found.media.mode, found.media.size) == ("RGB", wanted.media.size)
                assert (found.io_config, found.original_bytes) == (wanted.io_config, data)
                cache.get([Picture(found, None, DIGEST, cache)], pixels_of)


def test_name_finds_the_pixels_of_what_was_sent_with_it(cache: PixelCache) -> None:
    [pixels] = cache.get([sent(jpeg(), cache, "cup")], pixels_of)
    named = Picture(None, "cup", DIGEST, cache)
    assert not named.is_missing
    assert cache.get([named], pixels_of)[0] is pixels
    assert Picture(None, "saucer", DIGEST, cache).is_missing


def test_pixels_of_a_name_stay_for_the_request_though_the_cache_drops_them(
    cache: PixelCache,
) -> None:
    small = PixelCache(1300)
    small.get([sent(jpeg(1), cache, "a name")], pixels_of)
    small_name = Picture(ImageMediaIO().load_bytes(jpeg(1)), "a name", DIGEST, small)
    small.get([small_name], pixels_of)
    named = Picture(None, "a name", DIGEST, small)
    assert not named.is_missing
    small.get([Picture(ImageMediaIO().load_bytes(jpeg(2)), None, DIGEST, small)], pixels_of)
    assert Picture(None, "a name", DIGEST, small).is_missing
    assert isinstance(named.made, Tensor)
    assert torch.equal(named.made, pixels_of(small_name))

"""Pictures show each kept patch in the colour of whoever chose it."""

from PIL import Image

from vllm_litelvlm.demo.overlay import (
    CONTEXT_COLOUR,
    GUIDED_COLOUR,
    as_the_tower_sees_it,
    contact_sheet,
    draw_kept_patches,
    draw_kept_tokens,
    with_caption,
)


def test_kept_patches_are_bright_outlined_and_the_rest_is_dark() -> None:
    white = Image.new("RGB", (300, 200), "white")
    picture = draw_kept_patches(white, kept=[0, 5], guided=[True, False], grid=4, patch=14)
    assert picture.size == (112, 112)
    assert picture.getpixel((0, 0)) == GUIDED_COLOUR
    assert picture.getpixel((28, 28)) == CONTEXT_COLOUR
    assert picture.getpixel((14, 14)) == picture.getpixel((42, 42)) == (255, 255, 255)
    dropped = picture.getpixel((70, 14))
    assert isinstance(dropped, tuple)
    assert max(dropped) < 100


def test_tower_sees_the_centre_of_the_shorter_side() -> None:
    image = Image.new("RGB", (400, 100), "blue")
    image.paste("red", (150, 0, 250, 100))
    seen = as_the_tower_sees_it(image, 50)
    assert seen.size == (50, 50)
    assert seen.getpixel((25, 25)) == (255, 0, 0)
    assert seen.getpixel((3, 25)) == (255, 0, 0)


def test_caption_and_sheet_leave_room_for_every_picture() -> None:
    picture = Image.new("RGB", (112, 112), "white")
    captioned = with_caption(picture, "What?", [True, False])
    assert captioned.height > picture.height
    assert captioned.tobytes() != with_caption(picture, "What?").tobytes()
    sheet = contact_sheet([[captioned, captioned], [captioned, captioned]])
    assert sheet.width >= captioned.width
    assert sheet.height >= captioned.height


def test_tokens_of_a_grid_that_is_no_square_are_outlined_where_they_are() -> None:
    image = Image.new("RGB", (300, 200), (200, 200, 200))
    drawn = draw_kept_tokens(image, [0, 5], [True, False], (2, 3), 28)
    assert drawn.size == (3 * 56, 2 * 56)
    assert drawn.getpixel((0, 0)) == GUIDED_COLOUR
    assert drawn.getpixel((3 * 56 - 1, 2 * 56 - 1)) == CONTEXT_COLOUR
    assert drawn.getpixel((28, 28)) == (200, 200, 200)
    dark = drawn.getpixel((28, 56 + 28))
    assert isinstance(dark, tuple)
    assert max(dark) < 100

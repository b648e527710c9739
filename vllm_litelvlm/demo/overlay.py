"""Pictures of what was kept, as the paper's Figure 5 draws them."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from vllm_litelvlm.evaluation.samples import Box

#: Outline of tokens in whose choice the text had a say, and of all others.
GUIDED_COLOUR = (226, 34, 34)
CONTEXT_COLOUR = (22, 160, 60)
#: How wrong and right answers are written.
ANSWER_COLOUR = {False: (190, 20, 20), True: (10, 120, 40)}
_BOX_COLOUR = (255, 215, 0)
_SCALE = 2
#: Height of what stands under a picture, and of one more line there.
_CAPTION, _LINE = 44, 20


def as_the_tower_sees_it(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` pixels and crop the centre, as CLIP's processor does."""
    width, height = image.size
    scale = side / min(width, height)
    resized = image.convert("RGB").resize(
        (max(side, round(width * scale)), max(side, round(height * scale))),
        Image.Resampling.BICUBIC,
    )
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def draw_kept_patches(
    image: Image.Image, kept: Sequence[int], guided: Sequence[bool], grid: int, patch: int
) -> Image.Image:
    """Outline the kept patches, red for the text's and green for the others; grey out the rest.

    Args:
        image: the photograph.
        kept: patch indices in raster order of a ``grid`` x ``grid`` layout.
        guided: for each kept patch, whether the text had a say in its choice.
        grid: patches a side.
        patch: pixels a side of one patch.
    """
    return draw_kept_tokens(
        as_the_tower_sees_it(image, grid * patch), kept, guided, (grid, grid), patch
    )


def draw_kept_tokens(
    image: Image.Image,
    kept: Sequence[int],
    guided: Sequence[bool],
    grid: tuple[int, int],
    patch: int,
) -> Image.Image:
    """The same of a model that sees all of a picture as a grid of tokens, such as Qwen-VLs.

    Args:
        image: the photograph, or a frame of a video.
        kept: token indices in raster order.
        guided: for each kept token, whether the text had a say in its choice.
        grid: rows and columns of tokens.
        patch: pixels a side of one token.
    """
    rows, columns = grid
    size = patch * _SCALE
    seen = image.convert("RGB").resize((columns * size, rows * size), Image.Resampling.LANCZOS)
    picture = ImageEnhance.Brightness(seen.convert("L").convert("RGB")).enhance(0.35)
    pen = ImageDraw.Draw(picture)
    for index, by_text in zip(kept, guided, strict=True):
        row, column = divmod(index, columns)
        box = (column * size, row * size, (column + 1) * size, (row + 1) * size)
        picture.paste(seen.crop(box), box[:2])
        colour = GUIDED_COLOUR if by_text else CONTEXT_COLOUR
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=colour, width=2)
    return picture


def draw_box(picture: Image.Image, box: Box, side: int) -> None:
    """Draw a box of the square image of ``side`` pixels into a picture of it."""
    scale = picture.width / side
    corners = [edge * scale for edge in box]
    ImageDraw.Draw(picture).rectangle(corners, outline=_BOX_COLOUR, width=4)


def with_caption(
    picture: Image.Image,
    title: str,
    guided: Sequence[bool] | None = None,
    said: tuple[str, tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Write under a picture.

    Args:
        picture: it stays as it is; the answer is a new one.
        title: the first line.
        guided: for each kept token, whether the text had a say; how many each colour has is told.
        said: another line, and its colour.
    """
    height = picture.height + _CAPTION + (_LINE if said else 0)
    framed = Image.new("RGB", (picture.width, height), "white")
    framed.paste(picture, (0, 0))
    pen = ImageDraw.Draw(framed)
    font = ImageFont.load_default(15)
    top = picture.height + 4
    pen.text((6, top), title, fill="black", font=font)
    if said is not None:
        top += _LINE
        pen.text((6, top), said[0], fill=said[1], font=font)
    if guided is None:
        return framed
    place = 6
    for colour, label in (
        (GUIDED_COLOUR, f"by the text: {sum(guided)}"),
        (CONTEXT_COLOUR, f"without it: {len(guided) - sum(guided)}"),
    ):
        pen.rectangle((place, top + 23, place + 12, top + 35), fill=colour)
        pen.text((place + 18, top + 20), label, fill="black", font=font)
        place += 40 + round(pen.textlength(label, font=font))
    return framed


def contact_sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 8) -> Image.Image:
    """Pictures of one size in a grid, half as large."""
    cells = [[picture.reduce(2) for picture in row] for row in rows]
    width, height = cells[0][0].size
    sheet = Image.new(
        "RGB",
        (gap + max(map(len, cells)) * (width + gap), gap + len(cells) * (height + gap)),
        "white",
    )
    for number, row in enumerate(cells):
        for place, picture in enumerate(row):
            sheet.paste(picture, (gap + place * (width + gap), gap + number * (height + gap)))
    return sheet

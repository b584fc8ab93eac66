"""Before and after in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from pathlib import Path

MARGIN = 24
CAPTION = 44
PAPER = (24, 26, 30)
INK = (226, 228, 232)
FRAME = (255, 214, 120)

Box = tuple[float, float, float, float]


def before_after(before: Path, after: Path, out: Path, *, detail: Box = (0.25, 0.5, 0.5, 0.75)) -> None:
    """Write a PNG with the input on the left and the result on the right, and a detail of each below.

    Nothing is smoothed: both are enlarged to the same size by repeating their pixels.

    Args:
        before: The input.
        after: The result, as large or larger.
        out: Where to write; folders are made.
        detail: Left, top, right and bottom of the detail as parts of width and height.
    """
    with Image.open(before) as first, Image.open(after) as second:
        pictures = [("before", first.convert("RGB")), ("after", second.convert("RGB"))]
    width, height = pictures[1][1].size
    sheet = Image.new("RGB", (2 * width + 3 * MARGIN, 2 * height + 2 * CAPTION + MARGIN), PAPER)
    for column, (name, picture) in enumerate(pictures):
        left = MARGIN + column * (width + MARGIN)
        _panel(sheet, picture, (left, CAPTION), (width, height), f"{name}: {picture.width} x {picture.height} pixels")
        _outline(sheet, _scaled(detail, width, height), (left, CAPTION))
        crop = picture.crop(_scaled(detail, *picture.size))
        _panel(sheet, crop, (left, 2 * CAPTION + height), (width, height), f"{name}: detail")
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, format="PNG")


def _panel(
    sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], size: tuple[int, int], caption: str
) -> None:
    sheet.paste(picture.resize(size, Image.Resampling.NEAREST), corner)
    at = (corner[0], corner[1] - CAPTION // 2)
    ImageDraw.Draw(sheet).text(at, caption, fill=INK, font=ImageFont.load_default(size=20), anchor="lm")


def _outline(sheet: Image.Image, box: tuple[int, int, int, int], corner: tuple[int, int]) -> None:
    x, y = corner
    ImageDraw.Draw(sheet).rectangle((x + box[0], y + box[1], x + box[2], y + box[3]), outline=FRAME, width=2)


def _scaled(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return round(left * width), round(top * height), round(right * width), round(bottom * height)

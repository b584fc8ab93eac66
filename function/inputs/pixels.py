"""Images that are small as files and huge as pixels are found by their headers, before the engine decodes them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from PIL import Image

from function.errors import InputRefusedError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("comfyfn.inputs")

PILLOW_LIMIT = 178_956_970
"""Pixels above which Pillow, with which ComfyUI loads images, takes a file for a decompression bomb."""


def check_pixels(path: Path, *, max_pixels: int) -> None:
    """Refuse an image with too many pixels; what Pillow doesn't know is left to the engine.

    Args:
        path: The file.
        max_pixels: The most there may be; 0: PILLOW_LIMIT.

    Raises:
        InputRefusedError: There are more.
    """
    limit = min(max_pixels or PILLOW_LIMIT, PILLOW_LIMIT)
    pixels = _pixels_of(path)
    if pixels > limit:
        setting = " (MAX_PIXELS)" if limit == max_pixels else ""
        shown = f"{pixels} pixels" if pixels <= PILLOW_LIMIT else "too many pixels"
        raise InputRefusedError(f"the image has {shown}; {limit} is the most{setting}")


def _pixels_of(path: Path) -> int:
    """Width times height by the header; more than PILLOW_LIMIT where Pillow refuses to look, 0 for no image."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return PILLOW_LIMIT + 1
    except (OSError, SyntaxError, ValueError):  # no image, or one with a broken header
        return 0

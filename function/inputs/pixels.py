"""Images that are small as files and huge as pixels are found by their headers, before the engine decodes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from PIL import Image

from function.errors import InputRefusedError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

PILLOW_LIMIT = 178_956_970
"""Pixels above which Pillow, with which ComfyUI loads images, takes a file for a decompression bomb."""


_HEADER_BYTES = 64 * 1024 * 1024  # Pillow reads some formats whole for a look at the header, into memory


class _Header:
    """A file of which no more is read than a header may take; as Pillow reads it.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file = file
        self._size_bytes = os.fstat(file.fileno()).st_size
        self._left_bytes = _HEADER_BYTES

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes.

        Raises:
            _EndlessHeaderError: They are more than a header may have.
        """
        rest = max(0, self._size_bytes - self.tell())
        return self._file.read(self._counted(rest if size < 0 else min(size, rest)))

    def readline(self, size: int = -1, /) -> bytes:
        """The next line, or what there may be of it.

        Raises:
            _EndlessHeaderError: Nothing more may be read.
        """
        line = self._file.readline(self._left_bytes if size < 0 else size)
        self._counted(len(line) or 1)
        return line

    def _counted(self, wanted_bytes: int) -> int:
        self._left_bytes -= wanted_bytes
        if self._left_bytes < 0:
            raise _EndlessHeaderError
        return wanted_bytes


class _EndlessHeaderError(Exception):
    """The size of an image can't be told."""


def check_pixels(path: Path, *, max_pixels: int) -> None:
    """Refuse an image with too many pixels; what Pillow doesn't know is left to the engine.

    Args:
        path: The file.
        max_pixels: The most there may be; 0: PILLOW_LIMIT.

    Raises:
        InputRefusedError: There are more, or more of the file has to be read than a header may take.
    """
    limit = min(max_pixels or PILLOW_LIMIT, PILLOW_LIMIT)
    try:
        pixels = _pixels_of(path)
    except _EndlessHeaderError:
        raise InputRefusedError(f"the image's header goes on for more than {_HEADER_BYTES} bytes") from None
    if pixels > limit:
        setting = " (MAX_PIXELS)" if limit == max_pixels else ""
        shown = f"{pixels} pixels" if pixels <= PILLOW_LIMIT else "too many pixels"
        raise InputRefusedError(f"the image has {shown}; {limit} is the most{setting}")


def _pixels_of(path: Path) -> int:
    """Width times height by the header; more than PILLOW_LIMIT where Pillow refuses to look, 0 for no image."""
    try:
        with path.open("rb") as file, Image.open(_Header(file)) as image:  # type: ignore[arg-type]  # all that is asked of it
            return image.width * image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return PILLOW_LIMIT + 1
    except (OSError, SyntaxError, ValueError, LookupError, ArithmeticError, RuntimeError):  # no image, or a broken one
        return 0

"""An output file that is told from others by its digest, and a picture by its dimensions too."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.outputs.reading import EngineFileSource


class HashingReader:
    """A source that is hashed while it is read; a context that closes it.

    Args:
        source: The file.
        on_bytes: Called with the number of bytes of each read; an error that it raises ends the reading.

    Attributes:
        size_bytes: As of the source.
        version: As of the source.
        sha256: Digest of what was read.
    """

    def __init__(self, source: EngineFileSource, *, on_bytes: Callable[[int], None]) -> None:
        self.size_bytes = source.size_bytes
        self.version = source.version
        self.sha256 = hashlib.sha256()
        self._source = source
        self._on_bytes = on_bytes

    def __enter__(self) -> Self:
        """It is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the source."""
        self._source.close()

    def read(self, size: int = -1, /) -> bytes:
        """Read and hash."""
        data = self._source.read(size)
        self.sha256.update(data)
        self._on_bytes(len(data))
        return data

    def image_size(self) -> tuple[int | None, int | None]:
        """Width and height in pixels of an image that was read; None for what Pillow can't tell."""
        try:
            with Image.open(self._source.picture()) as image:
                return image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # no image, or its header goes on
            return None, None

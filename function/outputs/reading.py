"""The bytes of one output file: where they come from, and what is learnt of them while they are read."""

from __future__ import annotations

import hashlib
import os
from io import FileIO
from typing import TYPE_CHECKING, Protocol, Self

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO


class EngineFileSource(Protocol):
    """The bytes of one file, from its beginning to its end.

    Attributes:
        size_bytes: Its length when it was opened.
        version: What changes when the file is written to or replaced, as it was when it was opened.
    """

    size_bytes: int
    version: tuple[object, ...]

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; all that is left if it is negative."""
        ...

    def picture(self) -> BinaryIO | Path:
        """What Pillow can open to see the dimensions, once the file was read to its end."""
        ...

    def whole(self) -> BinaryIO | Path:
        """What Pillow can open to read all of it, before anything was read."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


class DiskFile(FileIO):
    """A file on the disk; see `EngineFileSource`.

    Args:
        path: Where it lies.
        version: What it was made from, if that is what counts; None: the file itself.
    """

    def __init__(self, path: Path, *, version: tuple[object, ...] | None = None) -> None:
        super().__init__(path)
        self._path = path
        status = os.fstat(self.fileno())
        self.size_bytes = status.st_size
        own: tuple[object, ...] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self.version = own if version is None else version

    def picture(self) -> Path:
        """Its path: Pillow reads no more of it than it needs."""
        return self._path

    def whole(self) -> Path:
        """Its path."""
        return self._path


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

"""The bytes of one output file, and where they come from."""

from __future__ import annotations

import os
from io import FileIO
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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

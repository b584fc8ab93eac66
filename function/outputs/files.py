"""Output files as the engine wrote them: found, read and described."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from function.errors import InputRefusedError, NodeFailedError
from function.job import Output
from function.storage.objects import is_key, media_type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from function.engine.results import EngineFile

_OUTPUT_FOLDER = "output"


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Where the engine wrote the files of one job.

    Attributes:
        output_dir: OUTPUT_DIR, which function and engine share.
        job_id: The job; its files lie in a folder of this name unless a workflow computes its own prefix.
    """

    output_dir: Path
    job_id: str

    @contextmanager
    def removed_at_the_end(self) -> Iterator[None]:
        """Remove the job's folder below OUTPUT_DIR at the end, whatever it holds by then."""
        try:
            yield
        finally:
            shutil.rmtree(self.output_dir / self.job_id, ignore_errors=True)

    def named(self, files: Sequence[EngineFile]) -> list[tuple[str, EngineFile]]:
        """The files that count as outputs, each with its name below the job's folder.

        Previews don't count: those are temporary files of the engine.

        Raises:
            InputRefusedError: A file lies outside OUTPUT_DIR, or two different ones have the same name.
        """
        kept = [(self._name(file), file) for file in files if file.folder_type == _OUTPUT_FOLDER]
        paths: dict[str, tuple[str, str]] = {}
        for name, file in kept:
            if paths.setdefault(name, (file.subfolder, file.filename)) != (file.subfolder, file.filename):
                raise InputRefusedError(f"node {file.node_id}: another node wrote {name!r} too; choose another prefix")
        return kept

    def open(self, file: EngineFile, *, on_bytes: Callable[[int], None] = lambda _: None) -> HashingFile:
        """Open one file.

        Raises:
            InputRefusedError: It lies outside OUTPUT_DIR.
            NodeFailedError: It can't be read, or isn't there.
        """
        path = Path(os.path.realpath(self.output_dir / file.subfolder / file.filename))
        if not path.is_relative_to(os.path.realpath(self.output_dir)):
            raise _outside(file)
        try:
            return HashingFile(path, on_bytes=on_bytes)
        except OSError as error:
            raise output_failure(file, f"which can't be read: {error.strerror}") from error

    def _name(self, file: EngineFile) -> str:
        name = str(PurePosixPath(file.subfolder, file.filename))
        if not is_key(name):
            raise _outside(file)
        return name.removeprefix(f"{self.job_id}/")


class HashingFile(FileIO):
    """A file that is hashed while it is read.

    Args:
        path: The file.
        on_bytes: Called with the number of bytes of each read; an error that it raises ends the reading.

    Attributes:
        version: What changes when the file is written to or replaced, as it was when it was opened.
        size_bytes: Its length at that moment.
        sha256: Digest of what was read.
    """

    def __init__(self, path: Path, *, on_bytes: Callable[[int], None]) -> None:
        super().__init__(path)
        self.path = path
        self.version = self.current_version()
        self.size_bytes = os.fstat(self.fileno()).st_size
        self.sha256 = hashlib.sha256()
        self._on_bytes = on_bytes

    def current_version(self) -> tuple[int, ...]:
        """`version` as of now."""
        status = os.fstat(self.fileno())
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def read(self, size: int | None = -1, /) -> bytes:
        """Read and hash; sequential reads only."""
        data = super().read(size)
        self.sha256.update(data)
        self._on_bytes(len(data))
        return data


def describe(name: str, file: EngineFile, source: HashingFile) -> Output:
    """What is known of a file that was read to its end."""
    place = PurePosixPath(name)
    media_type = media_type_of(name)
    width, height = _image_size(source.path) if media_type.startswith("image/") else (None, None)
    return Output(
        node_id=file.node_id,
        kind=file.kind,
        filename=place.name,
        subfolder="" if place.parent == PurePosixPath() else str(place.parent),
        media_type=media_type,
        size_bytes=source.size_bytes,
        sha256=source.sha256.hexdigest(),
        width=width,
        height=height,
    )


def _image_size(path: Path) -> tuple[int | None, int | None]:
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None, None


def output_failure(file: EngineFile, what: str) -> NodeFailedError:
    """The error for a node whose file is not what it reported."""
    message = f"node {file.node_id}: reported {file.filename!r}, {what}"
    return NodeFailedError(message, details={"node_id": file.node_id})


def _outside(file: EngineFile) -> InputRefusedError:
    return InputRefusedError(f"node {file.node_id}: wrote {file.filename!r} outside OUTPUT_DIR")

"""Output files as the engine wrote them: found and opened."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol

from function.errors import InputRefusedError, NodeFailedError
from function.job import Output
from function.storage.objects import is_key, media_type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from function.engine.results import EngineFile

_OUTPUT_FOLDER = "output"
_TEMP_FOLDER = "temp"


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

    def close(self) -> None:
        """Let it go."""
        ...


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Where the engine wrote the files of one job.

    Attributes:
        output_dir: OUTPUT_DIR; a file that lies there is read from there.
        job_id: The job; its files lie in a folder of this name unless a workflow computes its own prefix.
        view: Reads a file through the engine where it does not lie in OUTPUT_DIR; None where the engine has none such.
    """

    output_dir: Path
    job_id: str
    view: Callable[[EngineFile], EngineFileSource | None] = lambda _: None

    @contextmanager
    def removed_at_the_end(self) -> Iterator[None]:
        """Remove the job's folder below OUTPUT_DIR at the end, whatever it holds by then."""
        try:
            yield
        finally:
            shutil.rmtree(self.output_dir / self.job_id, ignore_errors=True)

    def saved(self, files: Sequence[EngineFile]) -> list[tuple[str, EngineFile]]:
        """The files that were saved, each with its name below the job's folder.

        Raises:
            InputRefusedError: A file lies outside OUTPUT_DIR, or two different ones have the same name.
        """
        return self._named(file for file in files if file.folder_type == _OUTPUT_FOLDER)

    def outputs(self, files: Sequence[EngineFile]) -> list[tuple[str, EngineFile]]:
        """The outputs of a run that ended: the files that were saved, or its previews where none was.

        Previews are temporary files of the engine, which nodes such as PreviewImage show in the editor.

        Raises:
            InputRefusedError: As for `saved`.
        """
        return self.saved(files) or self._named(file for file in files if file.folder_type == _TEMP_FOLDER)

    def has(self, files: Sequence[EngineFile]) -> bool:
        """Whether the outputs of a run that ended lie on the disk, so that none of them is read through the engine."""
        saved = [file for file in files if file.folder_type == _OUTPUT_FOLDER]
        previews = any(file.folder_type == _TEMP_FOLDER for file in files)
        return all(map(self._lies_here, saved)) if saved else not previews

    def _lies_here(self, file: EngineFile) -> bool:
        """Whether there is such a file; whether it may be read, `open` says."""
        path = self.output_dir / file.subfolder / file.filename
        return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises for a name that is too long)

    def _named(self, files: Iterable[EngineFile]) -> list[tuple[str, EngineFile]]:
        named = [(self._name(file), file) for file in files]
        paths: dict[str, tuple[str, str]] = {}
        for name, file in named:
            if paths.setdefault(name, (file.subfolder, file.filename)) != (file.subfolder, file.filename):
                raise InputRefusedError(f"node {file.node_id}: another node wrote {name!r} too; choose another prefix")
        return named

    def open(self, file: EngineFile) -> EngineFileSource:
        """Open one file; the caller closes it.

        Raises:
            InputRefusedError: It lies outside OUTPUT_DIR.
            NodeFailedError: It can't be read, or isn't there.
            EngineUnavailableError: It is read through the engine, which does not answer.
        """
        source = self._on_disk(file) or self.view(file)
        if source is None:
            raise output_failure(file, "which can't be read: there is no such file")
        return source

    def version(self, file: EngineFile) -> tuple[object, ...]:
        """What changes when the file is written to or replaced; raises as `open`."""
        with closing(self.open(file)) as source:
            return source.version

    def _on_disk(self, file: EngineFile) -> DiskFile | None:
        if file.folder_type != _OUTPUT_FOLDER:
            return None
        path = Path(os.path.realpath(self.output_dir / file.subfolder / file.filename))
        if not path.is_relative_to(os.path.realpath(self.output_dir)):
            raise _outside(file)
        try:
            return DiskFile(path)
        except FileNotFoundError:  # the engine writes elsewhere, or has removed it
            return None
        except OSError as error:
            raise output_failure(file, f"which can't be read: {error.strerror}") from error

    def _name(self, file: EngineFile) -> str:
        name = str(PurePosixPath(file.subfolder, file.filename))
        if not is_key(name):
            raise _outside(file)
        return name.removeprefix(f"{self.job_id}/")


class DiskFile(FileIO):
    """A file in OUTPUT_DIR; see `EngineFileSource`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        status = os.fstat(self.fileno())
        self.size_bytes = status.st_size
        self.version: tuple[object, ...] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def picture(self) -> Path:
        """Its path: Pillow reads no more of it than it needs."""
        return self._path


def describe(name: str, file: EngineFile, *, size_bytes: int) -> Output:
    """What is known of a file by its name and its length."""
    place = PurePosixPath(name)
    return Output(
        node_id=file.node_id,
        kind=file.kind,
        filename=place.name,
        subfolder="" if place.parent == PurePosixPath() else str(place.parent),
        media_type=media_type_of(name),
        size_bytes=size_bytes,
    )


def output_failure(file: EngineFile, what: str) -> NodeFailedError:
    """The error for a node whose file is not what it reported."""
    message = f"node {file.node_id}: reported {file.filename!r}, {what}"
    return NodeFailedError(message, details={"node_id": file.node_id})


def _outside(file: EngineFile) -> InputRefusedError:
    return InputRefusedError(f"node {file.node_id}: wrote {file.filename!r} outside OUTPUT_DIR")

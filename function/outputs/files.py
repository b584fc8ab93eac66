"""Output files as the engine wrote them: found and opened."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from function.errors import InputRefusedError, NodeFailedError
from function.job import JOB_ID, Output
from function.outputs.conversion import Converter, NotAnImageError
from function.outputs.reading import DiskFile
from function.storage.objects import is_key, media_type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from function.engine.results import EngineFile
    from function.handover import Conversion
    from function.outputs.reading import EngineFileSource

_OUTPUT_FOLDER = "output"
_TEMP_FOLDER = "temp"
_CONVERTED = ".converted"
_DATED_WITHIN_SECONDS = 1.0  # a file's date may be that much before it was written: disks count coarsely


def converter_of(output_dir: Path, job_id: str, conversion: Conversion | None) -> Converter | None:
    """What converts the files of a job; it puts them beside the job's own folder, where they are removed with it."""
    return Converter(conversion, _converted_dir(output_dir, job_id)) if conversion else None


def _converted_dir(output_dir: Path, job_id: str) -> Path:
    return output_dir / f"{job_id}{_CONVERTED}"


def remove_old_outputs(output_dir: Path) -> None:
    """Remove what jobs left whose process was killed, converted files too; for the start, when no job runs."""
    with suppress(OSError):  # not there yet, or on a disk of the engine's: then nothing of ours is left
        for path in list(output_dir.iterdir()):
            if JOB_ID.fullmatch(path.name.removesuffix(_CONVERTED)):
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Where the engine wrote the files of one job.

    Attributes:
        output_dir: OUTPUT_DIR; a file that lies there is read from there.
        job_id: The job; its files lie in a folder of this name unless a workflow computes its own prefix.
        view: Reads a file through the engine where it does not lie in OUTPUT_DIR; None where the engine has none such.
        converter: Turns images into another format; None: they are read as the engine wrote them.
    """

    output_dir: Path
    job_id: str
    view: Callable[[EngineFile], EngineFileSource | None] = lambda _: None
    converter: Converter | None = None

    @contextmanager
    def removed_at_the_end(self) -> Iterator[list[EngineFile]]:
        """Remove the job's folders below OUTPUT_DIR at the end, whatever they hold by then.

        Yields:
            A list to add the files to that nodes report. Those are removed too where they lie elsewhere below
            OUTPUT_DIR, as they do where the workflow computed their prefix, unless they were there before.
        """
        began = time.time() - _DATED_WITHIN_SECONDS
        reported: list[EngineFile] = []
        try:
            yield reported
        finally:
            for file in reported:
                self._remove(file, since=began)
            for directory in (self.output_dir / self.job_id, _converted_dir(self.output_dir, self.job_id)):
                shutil.rmtree(directory, ignore_errors=True)

    def _remove(self, file: EngineFile, *, since: float) -> None:
        path = self._path(file) if is_key(_reported_name(file)) else None
        if path and file.folder_type == _OUTPUT_FOLDER:
            with suppress(OSError):  # it has gone, or isn't a file
                if path.stat().st_mtime >= since:
                    path.unlink()

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
        """Open one file, converted if that is wanted; the caller closes it.

        Raises:
            InputRefusedError: It lies outside OUTPUT_DIR.
            NodeFailedError: It can't be read or converted, or isn't there.
            EngineUnavailableError: It is read through the engine, which does not answer.
        """
        source = self._source(file)
        try:
            return self.converter.open(self._relative(file), source) if self.converter else source
        except NotAnImageError as error:
            source.close()
            raise output_failure(file, f"which {error}") from error
        except BaseException:
            source.close()
            raise

    def version(self, file: EngineFile) -> tuple[object, ...]:
        """What changes when the engine's file is written to or replaced; raises as `open`."""
        with closing(self._source(file)) as source:
            return source.version

    def size_bytes(self, file: EngineFile) -> int:
        """The length of the engine's file, before it is converted; raises as `open`."""
        with closing(self._source(file)) as source:
            return source.size_bytes

    def _source(self, file: EngineFile) -> EngineFileSource:
        source = self._on_disk(file) or self.view(file)
        if source is None:
            raise output_failure(file, "which can't be read: there is no such file")
        return source

    def _on_disk(self, file: EngineFile) -> DiskFile | None:
        if file.folder_type != _OUTPUT_FOLDER:
            return None
        path = self._path(file)
        if path is None:
            raise _outside(file)
        try:
            return DiskFile(path)
        except FileNotFoundError:  # the engine writes elsewhere, or has removed it
            return None
        except OSError as error:
            raise output_failure(file, f"which can't be read: {error.strerror}") from error

    def _path(self, file: EngineFile) -> Path | None:
        """Where the file lies, links followed; None outside OUTPUT_DIR."""
        path = Path(os.path.realpath(self.output_dir / file.subfolder / file.filename))
        return path if path.is_relative_to(os.path.realpath(self.output_dir)) else None

    def _name(self, file: EngineFile) -> str:
        name = self._relative(file)
        return self.converter.name_of(name) if self.converter else name

    def _relative(self, file: EngineFile) -> str:
        name = _reported_name(file)
        if not is_key(name):
            raise _outside(file)
        return name.removeprefix(f"{self.job_id}/")


def _reported_name(file: EngineFile) -> str:
    return str(PurePosixPath(file.subfolder, file.filename))


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

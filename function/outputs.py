"""Output files of a job: found where the engine wrote them, measured, stored or handed to the caller."""

from __future__ import annotations

import hashlib
import mimetypes
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from function.errors import InputRefusedError
from function.job import Output
from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from function.engine.results import EngineFile
    from function.storage.objects import ObjectStore
    from function.telemetry import OnProgress

_OUTPUT_FOLDER = "output"


@contextmanager
def output_directory(output_dir: Path, job_id: str) -> Iterator[None]:
    """Remove the job's folder below OUTPUT_DIR at the end, whatever it holds by then."""
    try:
        yield
    finally:
        shutil.rmtree(output_dir / job_id, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The output files of one run, before they go anywhere.

    Attributes:
        files: What the engine reported, without previews: those are temporary files of the engine.
        output_dir: OUTPUT_DIR, which function and engine share.
        job_id: The job; its files lie in a folder of this name unless a workflow computes its own prefix.
    """

    files: Sequence[EngineFile]
    output_dir: Path
    job_id: str

    @classmethod
    def of(cls, files: Sequence[EngineFile], *, output_dir: Path, job_id: str) -> OutputFiles:
        """The files of a run that count as outputs."""
        kept = tuple(file for file in files if file.folder_type == _OUTPUT_FOLDER)
        return cls(kept, output_dir, job_id)

    def store(self, store: ObjectStore, *, attempt: int, on_progress: OnProgress) -> tuple[Output, ...]:
        """Upload every file to `outputs/<job_id>/<attempt>/`; all of them are stored when this returns."""
        stored = []
        for number, file in enumerate(self.files):
            on_progress(Progress("storing", number / len(self.files), file.filename))
            path = self._path(file)
            output = self._describe(file, path)
            key = "/".join(
                part for part in ("outputs", self.job_id, str(attempt), output.subfolder, output.filename) if part
            )
            with path.open("rb") as source:
                store.upload(key, source, size_bytes=output.size_bytes, media_type=output.media_type)
            stored.append(replace(output, url=store.object_url(key)))
        return tuple(stored)

    def read(self) -> tuple[Output, ...]:
        """Every file with its bytes, for a caller who gets them in the answer."""
        described = [(self._describe(file, self._path(file)), self._path(file)) for file in self.files]
        return tuple(replace(output, data=path.read_bytes()) for output, path in described)

    def _path(self, file: EngineFile) -> Path:
        path = (self.output_dir / file.subfolder / file.filename).resolve()
        if not path.is_relative_to(self.output_dir.resolve()):
            raise InputRefusedError(f"node {file.node_id}: wrote {file.filename!r} outside OUTPUT_DIR")
        return path

    def _describe(self, file: EngineFile, path: Path) -> Output:
        media_type = mimetypes.guess_type(file.filename)[0] or "application/octet-stream"
        width, height = _image_size(path) if media_type.startswith("image/") else (None, None)
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        return Output(
            node_id=file.node_id,
            kind=file.kind,
            filename=file.filename,
            subfolder=file.subfolder.removeprefix(self.job_id).strip("/"),
            media_type=media_type,
            size_bytes=path.stat().st_size,
            sha256=digest,
            width=width,
            height=height,
        )


def _image_size(path: Path) -> tuple[int | None, int | None]:
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None, None

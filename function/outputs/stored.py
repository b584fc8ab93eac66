"""Outputs in storage: streamed there while the run goes on."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Self

from function.errors import ComfyfnError, InputRefusedError, StorageUnavailableError
from function.outputs.files import describe, output_failure
from function.outputs.hashing import HashingReader
from function.storage.objects import ObjectChangedError, ObjectMissingError, media_type_of
from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from function.engine.results import EngineFile
    from function.job import JobResult, Output
    from function.outputs.files import OutputFolder
    from function.storage.objects import ObjectStore, RangeStream
    from function.telemetry import OnProgress

_log = logging.getLogger("comfyfn.outputs")

_UPLOADS_AT_ONCE = 2


def output_key(job_id: str, attempt: int, output: Output) -> str:
    """The key of a stored output below RESULTS_URL."""
    return "/".join(part for part in ("outputs", job_id, str(attempt), output.subfolder, output.filename) if part)


def with_data(store: ObjectStore, result: JobResult, output: Output) -> Output:
    """A stored output with its bytes.

    Raises:
        StorageUnavailableError: It can't be read, or is gone.
    """
    try:
        key = output_key(result.job_id, result.attempt, output)
        return replace(output, data=store.get(key, max_bytes=output.size_bytes))
    except ObjectMissingError as error:
        raise StorageUnavailableError(f"{output.url} is gone: its retention may be over") from error


class StoredFile:
    """A stored output that is read piece by piece, from its beginning each time.

    Args:
        store: Where RESULTS_URL points.
        result: The result that lists it.
        output: The output.
    """

    def __init__(self, store: ObjectStore, result: JobResult, output: Output) -> None:
        self._store = store
        self._key = output_key(result.job_id, result.attempt, output)
        self._size_bytes = output.size_bytes

    def __len__(self) -> int:
        """Its length in bytes."""
        return self._size_bytes

    def pieces(self, size: int) -> Iterator[bytes]:
        """Its bytes, in pieces of this size; the last one may be smaller.

        Raises:
            StorageUnavailableError: It can't be read to its end, or is gone.
        """
        if not self._size_bytes:
            return
        try:
            etag = self._store.head(self._key).etag
            with self._store.open_range(self._key, 0, self._size_bytes, etag=etag) as stream:
                for start in range(0, self._size_bytes, size):
                    yield _read_exactly(stream, min(size, self._size_bytes - start))
        except (ObjectMissingError, ObjectChangedError) as error:
            raise StorageUnavailableError(f"{self._store.object_url(self._key)} is gone") from error


def _read_exactly(stream: RangeStream, size: int) -> bytes:
    buffer = bytearray(size)
    read = 0
    while read < size:
        count = stream.readinto(memoryview(buffer)[read:])
        if not count:
            raise StorageUnavailableError("an output broke off while it was read")
        read += count
    return bytes(buffer)


class StoredOutputs:
    """The outputs of one attempt, streamed to `outputs/<job_id>/<attempt>/`, two at a time, while the run goes on.

    An upload that begins early is only a head start: it counts if the run ends well, the history lists the file, and
    the file is still the one that was stored; otherwise `finish` stores it again. Memory is the store's for two
    uploads; a file that waits for its turn takes none.

    Leaving the context cancels what is on its way and deletes what was stored and is no output: everything, unless
    `finish` has returned. That deletion is an attempt: nothing links to what it leaves behind.

    Args:
        store: Where RESULTS_URL points.
        folder: Where the files lie.
        attempt: The claimed attempt, which makes the keys this attempt's own.
        on_progress: Told of the bytes sent once the run has ended, in any thread.
    """

    def __init__(self, store: ObjectStore, folder: OutputFolder, *, attempt: int, on_progress: OnProgress) -> None:
        self._store = store
        self._folder = folder
        self._prefix = f"outputs/{folder.job_id}/{attempt}/"
        self._pool = ThreadPoolExecutor(_UPLOADS_AT_ONCE, thread_name_prefix="upload")
        self._uploads: dict[str, Future[_Stored]] = {}
        self._touched: set[str] = set()
        self._kept: set[str] = set()
        self._stopped = threading.Event()
        self._meter = _Meter(on_progress)

    def __enter__(self) -> Self:
        """Nothing begins before the first file does."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel, wait for the threads, delete what is no output."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._delete(sorted(self._touched - self._kept))

    def begin(self, files: Sequence[EngineFile]) -> None:
        """Begin to store files that are written, while the run goes on; whatever is wrong with them, `finish` says."""
        with suppress(InputRefusedError):
            for name, file in self._folder.saved(files):
                if name not in self._uploads:
                    self._start(name, file)

    def finish(self, files: Sequence[EngineFile]) -> tuple[Output, ...]:
        """The run's outputs in the order of its history; all of them are stored when this returns.

        Args:
            files: All files of the run that ended, as the history lists them.

        Raises:
            StorageUnavailableError: One of them could not be stored.
            InputRefusedError: A file lies outside OUTPUT_DIR or has a name that can't be a key.
            NodeFailedError: A file can't be read, or was written to while it was stored.
            EngineUnavailableError: A file is read through the engine, which does not answer.
        """
        named = self._folder.outputs(files)
        wanted = dict(named)
        self._meter.expect({name: self._folder.size_bytes(file) for name, file in wanted.items()})
        late = wanted.keys() - self._uploads.keys()
        for name, file in wanted.items():
            if name in late or not self._is_stored(name, file):
                self._start(name, file)
        stored = {name: self._uploads[name].result() for name in wanted}
        self._kept = set(stored)
        return tuple(replace(stored[name].output, node_id=file.node_id, kind=file.kind) for name, file in named)

    def _start(self, name: str, file: EngineFile) -> None:
        self._uploads[name] = self._pool.submit(self._store_file, name, file)

    def _is_stored(self, name: str, file: EngineFile) -> bool:
        """Wait for an upload that began early; whether it succeeded and its file is still the same."""
        try:
            stored = self._uploads[name].result()
        except ComfyfnError as error:
            _log.warning("output %s: %s; it is stored again", name, error.message)
            return False
        return self._folder.version(file) == stored.version

    def _store_file(self, name: str, file: EngineFile) -> _Stored:
        url = self._store.object_url(self._prefix + name)
        self._meter.reset(name)
        opened = self._folder.open(file)
        with HashingReader(opened, on_bytes=lambda count: self._count(name, count)) as source:
            self._touched.add(name)
            try:
                self._store.upload(
                    self._prefix + name, source, size_bytes=source.size_bytes, media_type=media_type_of(name)
                )
            except ValueError as error:  # it became shorter
                raise output_failure(file, "and went on writing to it") from error
            if self._folder.version(file) != source.version:
                raise output_failure(file, "and went on writing to it")
            return _Stored(_described(name, file, source, url), source.version)

    def _count(self, name: str, count_bytes: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError(name)
        self._meter.add(name, count_bytes)

    def _delete(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                self._store.delete(self._prefix + name)
        except ComfyfnError as error:
            _log.warning("files that are no outputs stay in storage below %s: %s", self._prefix, error.message)


def _described(name: str, file: EngineFile, source: HashingReader, url: str) -> Output:
    """What is known of a file that was stored."""
    output = describe(name, file, size_bytes=source.size_bytes)
    width, height = source.image_size() if output.media_type.startswith("image/") else (None, None)
    return replace(output, sha256=source.sha256.hexdigest(), width=width, height=height, url=url)


@dataclass(frozen=True, slots=True)
class _Stored:
    output: Output
    version: tuple[object, ...]


class _StoppedError(Exception):
    """The upload is no longer wanted; nobody sees this."""


class _Meter:
    """Counts bytes sent, in any thread; tells of them from `expect` on."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._sent_bytes: dict[str, int] = {}
        self._size_bytes: dict[str, int] = {}

    def expect(self, size_bytes: dict[str, int]) -> None:
        """From now on these files are what is to be sent."""
        with self._lock:
            self._size_bytes = size_bytes
            self._tell("")

    def reset(self, name: str) -> None:
        """A file is sent from its beginning."""
        with self._lock:
            self._sent_bytes[name] = 0

    def add(self, name: str, count_bytes: int) -> None:
        """A part of a file is sent."""
        with self._lock:
            self._sent_bytes[name] += count_bytes
            self._tell(name)

    def _tell(self, name: str) -> None:
        total_bytes = sum(self._size_bytes.values())
        if total_bytes:
            sent_bytes = sum(self._sent_bytes.get(expected, 0) for expected in self._size_bytes)
            self._on_progress(Progress("storing", min(1.0, sent_bytes / total_bytes), PurePosixPath(name).name))

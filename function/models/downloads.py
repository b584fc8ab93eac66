"""Downloads of one job: side by side, watched from the job's own thread, none left behind."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.errors import StorageUnavailableError
from function.telemetry import Progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from function.models.directory import ModelDirectory, Record
    from function.models.ledger import Entry, Lease, Ledger
    from function.storage.objects import ObjectStore
    from function.telemetry import Metrics, OnProgress

_PROGRESS_SECONDS = 0.25


class Downloads:
    """Brings the files of leases.

    Args:
        ledger: Told of every file that arrives or fails.
        directory: Where files appear.
        store: Where they come from.
        changed: The lock of ledger and directory; notified when a download ends.
        metrics: Where bytes are counted.
        clock: The clock of deadlines.
        parallel: Files of one job that are downloaded side by side.
    """

    def __init__(
        self,
        ledger: Ledger,
        directory: ModelDirectory,
        store: ObjectStore,
        *,
        changed: threading.Condition,
        metrics: Metrics,
        clock: Callable[[], float],
        parallel: int,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._store = store
        self._changed = changed
        self._metrics = metrics
        self._clock = clock
        self._parallel = parallel

    def run(self, lease: Lease, *, deadline: float, on_progress: OnProgress) -> None:
        """Download what this job has to and wait for what other jobs download.

        When one file fails the others stop, unless another job waits for them.

        Raises:
            ObjectMissingError, ObjectChangedError: A file is not in storage any more as it was found there.
            StorageUnavailableError: Storage or the disk failed, or the deadline passed.
            InputRefusedError: A name leads out of the model directory.
        """
        arriving = [entry for entry in lease.entries if not entry.arrival.done()]
        workers = max(1, min(self._parallel, len(lease.own)))
        with ThreadPoolExecutor(workers, thread_name_prefix="model-download") as pool:
            try:
                for entry in lease.own:
                    pool.submit(self._download, entry, lease)
                _raise_failures(lease.entries)
                if arriving:
                    self._watch(arriving, deadline, on_progress)
            except BaseException:
                lease.abandoned = True
                raise

    def _watch(self, arriving: list[Entry], deadline: float, on_progress: OnProgress) -> None:
        total = sum(entry.record.size_bytes for entry in arriving) or 1
        waiting = arriving
        while waiting:
            if self._clock() >= deadline:
                raise StorageUnavailableError("the models did not arrive before the job's deadline")
            on_progress(Progress("models", _written(arriving) / total, waiting[0].record.filename))
            wait([entry.arrival for entry in waiting], _PROGRESS_SECONDS, FIRST_EXCEPTION)
            _raise_failures(arriving)
            waiting = [entry for entry in arriving if not entry.arrival.done()]
        on_progress(Progress("models", 1.0))

    def _download(self, entry: Entry, lease: Lease) -> None:
        try:
            self._write(entry, lease)
        except BaseException as error:
            with self._changed:
                self._ledger.fail(entry, error)
                self._changed.notify_all()
            raise

    def _write(self, entry: Entry, lease: Lease) -> None:
        record = entry.record

        def count(written_bytes: int) -> None:
            entry.written_bytes += written_bytes
            self._metrics.cache_downloaded_bytes.inc(written_bytes)
            _stop_if_abandoned(entry, lease)

        _stop_if_abandoned(entry, lease)
        with disk_errors(self._directory.root), self._directory.part(record) as part:
            self._store.download(record.key, part, etag=record.etag, on_bytes=count)
            _check_length(part, record)
            with self._changed:
                self._ledger.arrive(entry, part)
                self._changed.notify_all()


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Translate what the model directory's disk raises."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailableError(f"model directory {root}: {error.strerror or error}") from error


def _stop_if_abandoned(entry: Entry, lease: Lease) -> None:
    if lease.abandoned and entry.pins <= 1:
        raise StorageUnavailableError(f"model {entry.record.key}: the job that downloaded it gave up")


def _check_length(part: Path, record: Record) -> None:
    length = part.stat().st_size
    if length != record.size_bytes:
        raise StorageUnavailableError(f"model {record.key}: {length} of {record.size_bytes} bytes arrived")


def _written(entries: list[Entry]) -> int:
    return sum(min(entry.written_bytes, entry.record.size_bytes) for entry in entries)


def _raise_failures(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.arrival.done():
            entry.arrival.result()

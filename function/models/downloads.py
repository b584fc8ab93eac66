"""Downloads of one job: side by side, watched from the job's own thread, none left behind."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.errors import StorageUnavailableError
from function.models.checking import crc64nvme_of
from function.models.ledger import StartOverError
from function.storage.objects import ObjectChangedError, ObjectMissingError
from function.telemetry import Progress, ignore_progress
from function.transfer.fetching import Fetch

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from function.models.directory import ModelDirectory
    from function.models.ledger import Lease, Ledger, Load, Place
    from function.models.records import Record
    from function.telemetry import Metrics, OnProgress
    from function.transfer.fetching import Fetcher

_PROGRESS_SECONDS = 0.25
POLL_SECONDS = 0.05
"""How often a job looks at what other processes do."""


class Downloads:
    """Brings the files of leases.

    Args:
        ledger: Told of every file that arrives or fails.
        directory: Where files appear.
        fetcher: Brings their bytes.
        changed: Notified when a download ends, so that jobs of this process need not wait for the next poll.
        metrics: Where bytes are counted.
        clock: The clock of deadlines.
        parallel: Files of one job that are downloaded side by side.
    """

    def __init__(
        self,
        ledger: Ledger,
        directory: ModelDirectory,
        fetcher: Fetcher,
        *,
        changed: threading.Condition,
        metrics: Metrics,
        clock: Callable[[], float],
        parallel: int,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._fetcher = fetcher
        self._changed = changed
        self._metrics = metrics
        self._clock = clock
        self._parallel = parallel

    def run(
        self,
        lease: Lease,
        *,
        deadline: float,
        on_progress: OnProgress = ignore_progress,
        goes_on: Callable[[Load], bool] = lambda _load: True,
    ) -> None:
        """Bring what this job has to and wait for what others bring.

        When one file fails the others stop. What has arrived of them stays for whoever goes on, for example a job that
        waits for one of them.

        Args:
            lease: What the job holds; when this returns, all its files are in place.
            deadline: When to stop.
            on_progress: Told in this thread, by bytes.
            goes_on: Asked now and then whether a file is still to be brought.

        Raises:
            ObjectMissingError, ObjectChangedError: A file is not in storage any more as it was found there.
            StartOverError: A file that others brought did not arrive, or one in place was broken.
            StorageUnavailableError: Storage or the disk failed, or the deadline passed.
        """
        if not lease.loads and not lease.joined:
            return
        with ThreadPoolExecutor(self._parallel, thread_name_prefix="model-download") as pool:
            try:
                running = {pool.submit(self._load, load, lease, goes_on) for load in lease.loads.values()}
                self._watch(lease, running, deadline, on_progress)
            except BaseException:
                lease.abandoned = True
                raise

    def _watch(self, lease: Lease, running: set[Future[Record]], deadline: float, on_progress: OnProgress) -> None:
        joined = list(lease.joined.values())
        total = sum(load.record.size_bytes for load in lease.loads.values()) + sum(r.size_bytes for r in joined)
        while running or lease.joined:
            if self._clock() >= deadline:
                raise StorageUnavailableError("the models did not arrive before the job's deadline")
            arrived = self._arrived_bytes(lease, joined)
            on_progress(Progress("models", arrived / (total or 1), _unfinished(lease)))
            for future in self._wait(lease, running):
                running.remove(future)
                lease.records[future.result().key] = future.result()
            for awaited in [*lease.joined.values()]:
                if record := self._ledger.arrived(awaited):
                    lease.records[record.key] = record
                    del lease.joined[record.key]
        on_progress(Progress("models", 1.0))

    def _wait(self, lease: Lease, running: set[Future[Record]]) -> set[Future[Record]]:
        """Wait until something may have changed; the futures that are done."""
        if running:
            return wait(running, POLL_SECONDS if lease.joined else _PROGRESS_SECONDS, FIRST_COMPLETED).done
        with self._changed:
            self._changed.wait(POLL_SECONDS)
        return set()

    def _arrived_bytes(self, lease: Lease, joined: list[Record]) -> int:
        own = sum(min(load.arrived_bytes, load.record.size_bytes) for load in lease.loads.values())
        for record in joined:
            noted = self._directory.arrived_bytes(record.key) if record.key in lease.joined else record.size_bytes
            own += min(noted, record.size_bytes)
        return own

    def _load(self, load: Load, lease: Lease, goes_on: Callable[[Load], bool]) -> Record:
        def count(more_bytes: int) -> None:
            load.arrived_bytes += more_bytes
            load.lock.note(load.arrived_bytes)
            if lease.abandoned or not goes_on(load):
                raise StorageUnavailableError(f"model {load.record.key}: the job that downloaded it gave up")

        try:
            count(0)
            with disk_errors(self._directory.root):
                return self._fetch(load, load.place, count) if load.place else self._check(load, count)
        except BaseException as error:
            useless = isinstance(error, (ObjectChangedError, ObjectMissingError))
            with self._directory.locked():
                self._ledger.give_up(load, useless=useless)
            raise
        finally:
            with self._changed:
                self._changed.notify_all()

    def _fetch(self, load: Load, place: Place, count: Callable[[int], None]) -> Record:
        record, part = load.record, self._directory.part(load.record)

        def count_downloaded(more_bytes: int) -> None:
            self._metrics.cache_downloaded_bytes.inc(more_bytes)
            count(more_bytes)

        wanted = Fetch(place.origin.url, place.key, record.etag, record.size_bytes, part, place.credentials)
        began = time.monotonic()
        fetched = self._fetcher.fetch(wanted, on_bytes=count_downloaded)
        self._metrics.cache_download_rate.set(load.arrived_bytes / max(time.monotonic() - began, 1e-6))
        length = part.stat().st_size
        if length != record.size_bytes:
            part.unlink()
            raise StorageUnavailableError(f"model {record.key}: {length} of {record.size_bytes} bytes arrived")
        with self._directory.locked():
            return self._ledger.arrive(load, fetched.crc64nvme)

    def _check(self, load: Load, count: Callable[[int], None]) -> Record:
        """Compare a file with its record, once since the machine started."""
        crc = crc64nvme_of(self._directory.path(load.record.key), on_bytes=count)
        with self._directory.locked():
            if crc == load.record.crc64nvme:
                return self._ledger.approve(load)
            self._ledger.reject(load)
        raise StartOverError(load.record.key)


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Translate what the model directory's disk raises."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailableError(f"model directory {root}: {error.strerror or error}") from error


def _unfinished(lease: Lease) -> str:
    """The name of a file that is on its way."""
    records = [*(load.record for load in lease.loads.values()), *lease.joined.values()]
    return next((record.filename for record in records if record.key not in lease.records), "")

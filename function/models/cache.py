"""The model cache: brings the files that a job needs and pins them while it runs.

A job gets all its files or none: it waits, first come first served and holding nothing, until the whole set fits. A
file is downloaded once however many jobs wait for it, and appears whole or not at all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from function.config import GIB
from function.errors import CacheBusyError, ModelMissingError, ModelTooLargeError, StorageUnavailableError
from function.models.directory import ModelDirectory, Record, can_write, free_disk_bytes
from function.models.downloads import Downloads, disk_errors
from function.models.ledger import Lease, Ledger, Wanted
from function.models.references import LEGACY_FOLDERS
from function.storage.objects import ObjectChangedError, ObjectMissingError
from function.telemetry import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from function.models.references import ModelRef
    from function.storage.objects import ObjectInfo, ObjectStore
    from function.telemetry import Metrics, OnProgress

_log = logging.getLogger(__name__)

_DISK_POLL_SECONDS = 1.0  # free disk changes without telling us
_ATTEMPTS = 3  # for an object that is replaced while it is being read

_Found: TypeAlias = Wanted | str | None  # to be leased | ETag of a file that isn't the cache's | nowhere


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file that the cache brought, for listings.

    Attributes:
        key: `<folder>/<filename>`.
        size_bytes: Its length.
        etag: Identity of its content.
        pinned: Whether a job uses it now.
    """

    key: str
    size_bytes: int
    etag: str
    pinned: bool


class ModelCache:
    """The models of one process in one directory.

    Args:
        model_dir: MODEL_DIR. Files there that the cache did not bring count as present and are left alone.
        store: Where models come from; the key of a model is `<folder>/<filename>`.
        capacity_bytes: Upper bound of the cache's files and reservations; 0: only the free disk bounds them.
        metrics: Where hits, misses, evictions, bytes and waiting are counted.
        clock: Monotonic seconds; deadlines are on this clock.
        measure_free_disk: Bytes that may still be written to a directory's disk.
        probe: Whether a directory can be written to; asked once. If not, nothing is ever written.
        parallel_downloads: Files of one job that are downloaded side by side.
        revalidate_seconds: For how long a file counts as current after storage was asked; 0: ask for every job.
    """

    def __init__(  # noqa: PLR0913  (each varies in a test or a deployment, and has a default otherwise)
        self,
        model_dir: Path,
        store: ObjectStore,
        *,
        capacity_bytes: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        measure_free_disk: Callable[[Path], int] = free_disk_bytes,
        probe: Callable[[Path], bool] = can_write,
        parallel_downloads: int = 4,
        revalidate_seconds: float = 0.0,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._parallel = parallel_downloads
        self._revalidate_seconds = revalidate_seconds
        self._directory = ModelDirectory(model_dir, probe=probe)
        self._ledger = Ledger(
            self._directory,
            capacity_bytes=capacity_bytes,
            free_disk_bytes=measure_free_disk,
            on_evict=metrics.cache_evictions.inc,
        )
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._downloads = Downloads(
            self._ledger,
            self._directory,
            store,
            changed=self._changed,
            metrics=metrics,
            clock=clock,
            parallel=self._parallel,
        )
        metrics.cache_capacity_bytes.set(capacity_bytes)
        metrics.cache_size_bytes.set_function(lambda: self._ledger.size_bytes)

    @property
    def read_only(self) -> bool:
        """Whether the model directory can't be written to."""
        return self._directory.read_only

    @property
    def size_bytes(self) -> int:
        """Bytes of the cache's files and of the room reserved for arriving ones."""
        return self._ledger.size_bytes

    def files(self) -> list[CachedFile]:
        """The cache's files that are in place, by key; files that it did not bring are not listed."""
        with self._changed:
            entries = [entry for entry in self._ledger.entries if entry.arrival.done()]
            files = [CachedFile(e.record.key, e.record.size_bytes, e.record.etag, e.pins > 0) for e in entries]
        return sorted(files, key=lambda file: file.key)

    @contextmanager
    def ensure(
        self, refs: Iterable[ModelRef], *, deadline: float, on_progress: OnProgress = ignore_progress
    ) -> Iterator[dict[ModelRef, str]]:
        """Have these files present, current and pinned until the context closes.

        Args:
            refs: What a job needs; a missing optional one is left out.
            deadline: When to stop waiting, on the cache's clock.
            on_progress: Told in this thread, by bytes, while files arrive.

        Yields:
            The ETag of each file; it changes when the content does.

        Raises:
            ModelMissingError: Naming every file that is neither here nor in storage, before anything is downloaded.
            ModelTooLargeError: The set is larger than the cache or the disk.
            CacheBusyError: No room until the deadline.
            StorageUnavailableError: Storage or the disk failed, or the files did not arrive before the deadline.
            InputRefusedError: A name leads out of the model directory.
        """
        refs = tuple(refs)
        with self._metrics.cache_wait_seconds.time():
            etags, lease = self._bring(refs, deadline, on_progress)
        try:
            yield {ref: etags[ref.key] for ref in refs if ref.key in etags}
        finally:
            self._release(lease)

    def _bring(
        self, refs: tuple[ModelRef, ...], deadline: float, on_progress: OnProgress
    ) -> tuple[dict[str, str], Lease]:
        """ETags of the files that are there, and the lease on those that the cache brought."""
        for _ in range(_ATTEMPTS):
            found = self._find(refs)
            wanted = [item for item in found.values() if isinstance(item, Wanted)]
            self._check_size(wanted)
            try:
                lease = self._leased(wanted, deadline, on_progress)
            except (ObjectChangedError, ObjectMissingError) as error:
                _log.warning("model %s was replaced while it was read; asking storage again", error)
                continue
            self._count(found, lease)
            etags = {key: item for key, item in found.items() if isinstance(item, str)}
            return etags | {entry.record.key: entry.record.etag for entry in lease.entries}, lease
        raise StorageUnavailableError("a model was replaced in storage again and again while it was read")

    def _leased(self, wanted: list[Wanted], deadline: float, on_progress: OnProgress) -> Lease:
        with ExitStack() as undo:
            lease = self._take(wanted, deadline)
            undo.callback(self._release, lease)
            self._downloads.run(lease, deadline=deadline, on_progress=on_progress)
            undo.pop_all()
        return lease

    def _count(self, found: Mapping[str, _Found], lease: Lease) -> None:
        self._metrics.cache_misses.inc(len(lease.own))
        self._metrics.cache_hits.inc(len(found) - len(lease.own))
        for entry in lease.own:
            entry.checked_at = self._clock()

    # What is where

    def _find(self, refs: tuple[ModelRef, ...]) -> dict[str, _Found]:
        """Where each file is, by key; without optional ones that are nowhere."""
        with self._changed:
            found = {ref.key: self._find_here(ref) for ref in refs}
        if not self._directory.read_only:
            found |= self._find_in_storage([key for key, item in found.items() if item is None])
        missing = [ref for ref in refs if found[ref.key] is None and not ref.optional]
        if missing:
            raise self._missing(missing)
        return {key: item for key, item in found.items() if item is not None}

    def _find_here(self, ref: ModelRef) -> _Found:
        """A file that needs no question to storage."""
        entry = self._ledger.find(ref.key)
        if entry is None:
            return self._etag_of_foreign(ref)
        if self._clock() - entry.checked_at < self._revalidate_seconds:
            return Wanted(entry.record, any_content=True)
        return None

    def _etag_of_foreign(self, ref: ModelRef) -> str | None:
        """Something that changes with a file that the cache did not bring; None if there is no such file."""
        legacy = LEGACY_FOLDERS.get(ref.folder)
        keys = [ref.key, *([f"{legacy}/{ref.filename}"] if legacy else [])]
        found = (self._directory.find(key) for key in keys)
        return next((f"{status.st_size}-{status.st_mtime_ns}" for status in found if status), None)

    def _find_in_storage(self, keys: list[str]) -> dict[str, _Found]:
        if not keys:
            return {}
        with ThreadPoolExecutor(min(self._parallel, len(keys)), thread_name_prefix="model-head") as pool:
            answers = {key: pool.submit(self._store.head, key) for key in keys}
        return {key: self._settle(key, answer) for key, answer in answers.items()}

    def _settle(self, key: str, answer: Future[ObjectInfo]) -> Wanted | None:
        """What storage's answer means beside what the cache has."""
        with self._changed:
            entry = self._ledger.find(key)
        try:
            info = answer.result()
        except (ObjectMissingError, StorageUnavailableError) as error:
            if entry:
                _log.warning("model %s: the cached file is used; storage: %s", key, error)
                return Wanted(entry.record, any_content=True)
            if isinstance(error, ObjectMissingError):
                return None
            raise
        if entry and entry.record.etag == info.etag:
            entry.checked_at = self._clock()
        return Wanted(Record(key, info.etag, info.size_bytes))

    def _missing(self, refs: list[ModelRef]) -> ModelMissingError:
        lines = [
            f"node {ref.node_id}, input {ref.input_name}: model {ref.filename!r} is neither in {ref.folder} "
            f"nor at {self._store.object_url(ref.key)}"
            for ref in refs
        ]
        if self._directory.read_only:
            lines.append(f"the model directory {self._directory.root} is read-only, so nothing is downloaded")
        details = [
            {"node_id": ref.node_id, "input_name": ref.input_name, "folder": ref.folder, "filename": ref.filename}
            for ref in refs
        ]
        return ModelMissingError("; ".join(lines), details={"missing_models": details})

    # Room

    def _check_size(self, wanted: list[Wanted]) -> None:
        total = sum(want.record.size_bytes for want in wanted)
        capacity = self._ledger.capacity_bytes
        if capacity and total > capacity:
            raise _too_large(total, capacity, "the cache (LRU_CACHE_SIZE_GB)")
        if total:
            with self._changed, disk_errors(self._directory.root):
                reachable = self._ledger.reachable_bytes()
            if total > reachable:
                raise _too_large(total, reachable, f"the free disk of {self._directory.root}")

    def _take(self, wanted: list[Wanted], deadline: float) -> Lease:
        """Wait in the queue until the whole set fits, then hold it."""
        if not wanted:
            return Lease([], [])
        ticket = object()
        with self._changed, disk_errors(self._directory.root):
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or (lease := self._ledger.take(wanted)) is None:
                    self._wait(deadline)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        return lease

    def _wait(self, deadline: float) -> None:
        remaining = deadline - self._clock()
        if remaining <= 0:
            raise CacheBusyError("running jobs hold the model cache; there was no room for this job's models in time")
        self._changed.wait(min(remaining, _DISK_POLL_SECONDS))

    def _release(self, lease: Lease) -> None:
        with self._changed:
            for entry in lease.entries:
                self._ledger.release(entry)
            self._changed.notify_all()


def _too_large(total: int, limit: int, what: str) -> ModelTooLargeError:
    return ModelTooLargeError(
        f"the models of this job take {total} bytes ({total / GIB:.3g} GiB); "
        f"{what} has room for {limit} ({limit / GIB:.3g} GiB)",
        details={"total_bytes": total, "limit_bytes": limit},
    )

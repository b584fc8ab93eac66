"""How a job gets its files: at once where they are there, else by its turn in the queue."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from function.errors import CacheBusyError, ModelTooLargeError, StorageUnavailableError
from function.models.books import read_books
from function.models.downloads import POLL_SECONDS, disk_errors
from function.models.ledger import Lease, StartOverError, Wanted
from function.setting_values import GIB
from function.storage.objects import ObjectChangedError, ObjectMissingError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from function.models.directory import ModelDirectory
    from function.models.downloads import Downloads
    from function.models.finding import Finder
    from function.models.ledger import Ledger
    from function.models.references import ModelRef
    from function.models.room import Room
    from function.models.waiting import WaitingLine
    from function.telemetry import Metrics, OnProgress

_log = logging.getLogger(__name__)

_ATTEMPTS = 3  # for an object that is replaced while it is being read


class Leasing:
    """Gives jobs what they need, or says why not.

    Args:
        directory: The files.
        finder: Finds out where they are.
        ledger: Decides.
        room: Knows what can fit.
        downloads: Brings what is missing.
        line: Jobs that wait for room.
        changed: Notified when something may fit that didn't; jobs of other processes look by themselves.
        metrics: Where hits and misses are counted.
        clock: The clock of deadlines.
    """

    def __init__(  # noqa: PLR0913  (the parts of the cache, put together in one place)
        self,
        directory: ModelDirectory,
        finder: Finder,
        ledger: Ledger,
        room: Room,
        downloads: Downloads,
        line: WaitingLine,
        *,
        changed: threading.Condition,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._finder = finder
        self._ledger = ledger
        self._room = room
        self._downloads = downloads
        self._line = line
        self._changed = changed
        self._metrics = metrics
        self._clock = clock

    def get(
        self, refs: tuple[ModelRef, ...], *, deadline: float, on_progress: OnProgress
    ) -> tuple[dict[str, str], Lease]:
        """ETags by key of all files, and the lease on those that are the cache's; see `ModelCache.ensure`."""
        lease = self._hold_current(refs)
        if lease:
            self._count(len(lease.records), lease)
            return _etags(lease), lease
        return self._bring(refs, deadline, on_progress)

    def give_back(self, lease: Lease) -> None:
        """End a lease."""
        self._ledger.release(lease)
        self.notify()

    def notify(self) -> None:
        """Let the waiting jobs of this process look again."""
        with self._changed:
            self._changed.notify_all()

    def _hold(self, keys: Iterable[str]) -> Lease | None:
        """Pin files that are all there, without a decision; None if one is needed, or others wait for theirs."""
        if self._directory.read_only or not self._line.empty:
            return None
        lease = Lease()
        with ExitStack() as undo:
            undo.callback(lease.unlock)
            for key in keys:
                held = self._ledger.hold(key)
                if held is None:
                    return None
                lease.records[key], lease.pins[key] = held
            undo.pop_all()
        return lease

    def _hold_current(self, refs: tuple[ModelRef, ...]) -> Lease | None:
        """Pin files that are all there and need not be asked about."""
        with disk_errors(self._directory.root):
            lease = self._hold({ref.key for ref in refs})
        if lease is None:
            return None
        with ExitStack() as undo:
            undo.callback(lease.unlock)
            if not all(self._finder.is_current(lease.records[ref.key], ref) for ref in refs):
                return None
            undo.pop_all()
        return lease

    def _hold_these(self, wanted: list[Wanted]) -> Lease | None:
        lease = self._hold(want.record.key for want in wanted)
        if lease and not all(want.record.is_same_content(lease.records[want.record.key]) for want in wanted):
            lease.unlock()
            return None
        return lease

    def _bring(
        self, refs: tuple[ModelRef, ...], deadline: float, on_progress: OnProgress
    ) -> tuple[dict[str, str], Lease]:
        replaced = 0
        while replaced < _ATTEMPTS:
            with disk_errors(self._directory.root):
                found = self._finder.find(refs)
            try:
                lease = self._leased(
                    [item for item in found.values() if isinstance(item, Wanted)], deadline, on_progress
                )
            except (ObjectChangedError, ObjectMissingError) as error:
                _log.warning("model %s was replaced while it was read; asking storage again", error)
                replaced += 1
            except StartOverError:
                if self._clock() >= deadline:
                    raise StorageUnavailableError("the models did not arrive before the job's deadline") from None
            else:
                self._count(len(found), lease)
                return {key: item for key, item in found.items() if isinstance(item, str)} | _etags(lease), lease
        raise StorageUnavailableError("a model was replaced in storage again and again while it was read")

    def _leased(self, wanted: list[Wanted], deadline: float, on_progress: OnProgress) -> Lease:
        """The lease on a set of files that are all in place."""
        if self._room.capacity_bytes:
            _check_size(wanted, self._room.capacity_bytes, "the cache (LRU_CACHE_SIZE_GB)")
        with ExitStack() as undo:
            with disk_errors(self._directory.root):
                lease = self._hold_these(wanted) or self._take(wanted, deadline) if wanted else Lease()
            undo.callback(self.give_back, lease)
            self._downloads.run(lease, deadline=deadline, on_progress=on_progress)
            undo.pop_all()
        return lease

    def _take(self, wanted: list[Wanted], deadline: float) -> Lease:
        """Wait in the queue until the whole set fits, then hold it."""
        reachable = 0
        with self._line.place() as place:
            while True:
                with self._directory.locked():
                    if place.is_first():
                        books = read_books(self._directory)
                        # Evicted files that a process still maps are not free yet: what was reachable once will be.
                        reachable = max(reachable, self._room.reachable_bytes(books))
                        lease = self._ledger.take(wanted, books)
                        if lease:
                            return lease
                        _check_size(wanted, reachable, f"the free disk of {self._directory.root}")
                    place.keep()
                self._wait(deadline)

    def _wait(self, deadline: float) -> None:
        remaining = deadline - self._clock()
        if remaining <= 0:
            raise CacheBusyError(
                "running jobs and pinned files hold the model cache; there was no room for this job's models in time"
            )
        with self._changed:
            self._changed.wait(min(remaining, POLL_SECONDS))

    def _count(self, files: int, lease: Lease) -> None:
        misses = sum(load.place is not None for load in lease.loads.values())
        self._metrics.cache_misses.inc(misses)
        self._metrics.cache_hits.inc(files - misses)


def _etags(lease: Lease) -> dict[str, str]:
    return {key: record.etag for key, record in lease.records.items()}


def _check_size(wanted: list[Wanted], limit: int, what: str) -> None:
    total = sum(want.record.size_bytes for want in wanted)
    if total > limit:
        raise ModelTooLargeError(
            f"the models of this job take {total} bytes ({total / GIB:.3g} GiB); "
            f"{what} has room for {limit} ({limit / GIB:.3g} GiB)",
            details={"total_bytes": total, "limit_bytes": limit},
        )

"""The cache's books: which files there are, who pins them, what is reserved, what goes first.

Everything here happens under the cache's lock and takes no longer than a few calls of the file system.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cachetools import LRUCache

from function.errors import StorageUnavailableError
from function.storage.objects import ObjectChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from function.models.directory import ModelDirectory, Record

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Entry:
    """One file of the cache, on disk or arriving.

    Attributes:
        record: What it is.
        arrival: Done once the file is in place; carries the error of a download that failed.
        pins: Jobs that use it or wait for it.
        written_bytes: How much of it has arrived.
        checked_at: When storage last said that this is the current content, by the cache's clock.
    """

    record: Record
    arrival: Future[None] = field(default_factory=Future)
    pins: int = 0
    written_bytes: int = 0
    checked_at: float = -math.inf

    @property
    def missing_bytes(self) -> int:
        """What is reserved for it but not on disk yet."""
        return 0 if self.arrival.done() else max(0, self.record.size_bytes - self.written_bytes)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a job needs.

    Attributes:
        record: Its key, ETag and size in storage.
        any_content: Take what the cache has, whatever its ETag: storage wasn't or couldn't be asked.
    """

    record: Record
    any_content: bool = False

    def is_met_by(self, entry: Entry) -> bool:
        """Whether this entry is the wanted content."""
        return self.any_content or entry.record.etag == self.record.etag


@dataclass(slots=True)
class Lease:
    """What one job holds.

    Attributes:
        entries: All its files, pinned.
        own: Those of them that this job has to download.
        abandoned: The job gave up; its downloads stop unless another job waits for them.
    """

    entries: list[Entry]
    own: list[Entry]
    abandoned: bool = False


class Ledger:
    """Entries by key; the unpinned ones also in an LRUCache, which knows what goes first.

    `size_bytes` counts the cache's own files and the reservations for arriving ones; with a capacity it never exceeds
    it. While a new version of a file arrives, the old one stays, unpinned, until it is replaced or its room is needed.

    Args:
        directory: The files.
        capacity_bytes: Upper bound of `size_bytes`; 0: only the disk bounds it.
        free_disk_bytes: Measures the free space of the directory's disk.
        on_evict: Called for each file that is removed to make room.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        *,
        capacity_bytes: int,
        free_disk_bytes: Callable[[Path], int],
        on_evict: Callable[[], None],
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._directory = directory
        self._free_disk_bytes = free_disk_bytes
        self._on_evict = on_evict
        self._entries: dict[str, Entry] = {}
        self._pinned_bytes = 0
        self._evictable: LRUCache[str, Entry] = LRUCache(math.inf, getsizeof=lambda entry: entry.record.size_bytes)
        for record in directory.load():
            self._add(record)
        self._make_room(0, [])

    @property
    def size_bytes(self) -> int:
        """Bytes of the cache's files and reservations."""
        return self._pinned_bytes + int(self._evictable.currsize)

    @property
    def entries(self) -> list[Entry]:
        """All entries, arriving ones too."""
        return list(self._entries.values())

    def find(self, key: str) -> Entry | None:
        """The entry of a key, in any state."""
        return self._entries.get(key)

    def reachable_bytes(self) -> int:
        """Room on the disk if every file of the cache were gone."""
        return self._free_disk_bytes(self._directory.root) + self.size_bytes - self._missing_bytes()

    def take(self, wanted: Sequence[Wanted]) -> Lease | None:
        """Pin all wanted files and reserve room for those that have to come; all or nothing.

        Least recently used files are evicted here, before the first byte of a new one arrives.

        Returns:
            None if a running job has to release something first.

        Raises:
            ObjectChangedError: A file that was to be used as it is has gone since.
        """
        present: list[Entry] = []
        absent: list[Record] = []
        for want in wanted:
            entry = self._checked(want.record.key)
            if entry and want.is_met_by(entry):
                present.append(entry)
            elif entry and entry.pins:
                return None  # a job uses other content under this key
            elif want.any_content:
                raise ObjectChangedError(want.record.key)
            else:
                absent.append(want.record)
        if not self._could_fit(present, absent):
            return None
        return self._lease(present, absent)

    def release(self, entry: Entry) -> None:
        """Undo one pin; a file without pins becomes evictable, as the most recently used."""
        entry.pins -= 1
        key = entry.record.key
        if entry.pins or self._entries.get(key) is not entry:
            return
        if not entry.arrival.done():
            self.fail(entry, StorageUnavailableError(f"model {key}: its download never began"))
            return
        self._pinned_bytes -= entry.record.size_bytes
        self._evictable[key] = entry
        self._directory.touch(entry.record)

    def arrive(self, entry: Entry, part: Path) -> None:
        """Put a finished download in place."""
        self._directory.commit(entry.record, part)
        self._evictable.pop(entry.record.key, None)  # the old version, which has just been replaced
        entry.arrival.set_result(None)

    def fail(self, entry: Entry, error: BaseException) -> None:
        """Give up a download: its room is free again, and an old version of the file counts again."""
        key = entry.record.key
        self._pinned_bytes -= entry.record.size_bytes
        del self._entries[key]
        if key in self._evictable:
            self._entries[key] = self._evictable[key]
        entry.arrival.set_exception(error)

    def _add(self, record: Record) -> None:
        entry = Entry(record)
        entry.arrival.set_result(None)
        self._entries[record.key] = self._evictable[record.key] = entry

    def _checked(self, key: str) -> Entry | None:
        """The entry of a key, unless somebody removed or changed its file behind our back."""
        entry = self._entries.get(key)
        if entry is None or entry.pins:
            return entry
        status = self._directory.find(key)
        if status and status.st_size == entry.record.size_bytes:
            return entry
        _log.warning("model cache: %s was changed by somebody else; it is dropped", key)
        self._remove(self._evictable.pop(key))
        return None

    def _could_fit(self, present: Iterable[Entry], absent: Sequence[Record]) -> bool:
        if not absent:
            return True
        new = sum(record.size_bytes for record in absent)
        kept = sum(entry.record.size_bytes for entry in present if not entry.pins)
        if self.capacity_bytes and self._pinned_bytes + kept + new > self.capacity_bytes:
            return False
        removable = int(self._evictable.currsize) - kept
        return self._free_disk_bytes(self._directory.root) + removable >= new + self._missing_bytes()

    def _lease(self, present: list[Entry], absent: list[Record]) -> Lease | None:
        with ExitStack() as undo:
            for entry in present:
                self._pin(entry)
                undo.callback(self.release, entry)
            new = sum(record.size_bytes for record in absent)
            if absent and not self._make_room(new, [record.key for record in absent]):
                return None
            undo.pop_all()
        own = [self._reserve(record) for record in absent]
        return Lease([*present, *own], own)

    def _pin(self, entry: Entry) -> None:
        if entry.pins == 0:
            del self._evictable[entry.record.key]
            self._pinned_bytes += entry.record.size_bytes
            self._directory.touch(entry.record)
        entry.pins += 1

    def _reserve(self, record: Record) -> Entry:
        self._entries[record.key] = entry = Entry(record, pins=1)
        self._pinned_bytes += record.size_bytes
        return entry

    def _make_room(self, new_bytes: int, outdated: Iterable[str]) -> bool:
        """Evict until `new_bytes` more fit: old versions of what is coming first, then by last use."""
        first = [key for key in outdated if key in self._evictable]
        while self._is_short(new_bytes):
            if not self._evictable:
                return False  # the disk did not get emptier: a process still maps a removed file
            self._remove(self._evictable.pop(first.pop()) if first else self._evictable.popitem()[1])
            self._on_evict()
        return True

    def _is_short(self, new_bytes: int) -> bool:
        if self.capacity_bytes and self.size_bytes + new_bytes > self.capacity_bytes:
            return True
        return new_bytes > 0 and self._free_disk_bytes(self._directory.root) < new_bytes + self._missing_bytes()

    def _missing_bytes(self) -> int:
        return sum(entry.missing_bytes for entry in self._entries.values())

    def _remove(self, entry: Entry) -> None:
        """Remove the file of an entry that was just taken out of the evictable ones."""
        key = entry.record.key
        try:
            self._directory.remove(entry.record)
        except OSError:
            self._evictable[key] = entry  # it still takes its room
            raise
        if self._entries.get(key) is entry:
            del self._entries[key]

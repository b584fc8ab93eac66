"""Room: whether more fits into a directory, and what has to go for it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from cachetools import LRUCache

from function.models.books import read_books

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from function.models.books import Books
    from function.models.directory import ModelDirectory
    from function.models.records import Record


class Room:
    """Evicts what nobody uses. Everything here happens under the directory's lock.

    Args:
        directory: The files.
        capacity_bytes: Upper bound of the books' `size_bytes`; 0: only the disk bounds it.
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

    def reachable_bytes(self, books: Books) -> int:
        """Room on the disk if every file of the cache were gone."""
        missing = sum(self._missing_bytes(record) for record in (*books.arriving.values(), *books.left.values()))
        return self._free() + books.size_bytes - missing

    def make(self, books: Books, new: Sequence[Record], *, spare: Collection[str]) -> bool:
        """Evict until these files fit: what downloads left, then old versions, then by last use.

        Args:
            books: As they are.
            new: Files that are to come; what downloads left of them is replaced.
            spare: Keys of files that must stay.

        Returns:
            False if they don't fit beside the files that jobs use; nothing is evicted then. False, too, if the disk
            did not get emptier because a process still maps a removed file.
        """
        short = self._short_bytes(books, new)
        if short <= 0:
            return True
        if not self._evict(books, short, outdated={record.key for record in new}, spare=spare, in_part=False):
            return False
        return self._short_on_disk(books, new) <= 0

    def shrink(self) -> None:
        """Evict what is too much for the capacity, as far as nobody uses it."""
        books = read_books(self._directory)
        if self.capacity_bytes and books.size_bytes > self.capacity_bytes:
            self._evict(books, books.size_bytes - self.capacity_bytes, outdated=(), spare=(), in_part=True)

    def _short_bytes(self, books: Books, new: Sequence[Record]) -> int:
        replaced = sum(books.left[record.key].size_bytes for record in new if record.key in books.left)
        size_bytes = books.size_bytes - replaced + sum(record.size_bytes for record in new)
        over = size_bytes - self.capacity_bytes if self.capacity_bytes else 0
        return max(over, self._short_on_disk(books, new))

    def _short_on_disk(self, books: Books, new: Sequence[Record]) -> int:
        """How much of what is reserved and not there yet doesn't fit on the disk."""
        if not any(record.size_bytes for record in new):
            return 0
        return sum(self._missing_bytes(record) for record in (*books.arriving.values(), *new)) - self._free()

    def _missing_bytes(self, record: Record) -> int:
        return record.size_bytes - self._directory.allocated_bytes(record)

    def _free(self) -> int:
        return self._free_disk_bytes(self._directory.root)

    def _evict(
        self, books: Books, short_bytes: int, *, outdated: Collection[str], spare: Collection[str], in_part: bool
    ) -> bool:
        """Evict at least so much, or nothing; with `in_part`, as much of it as possible."""
        chosen: list[Callable[[], None]] = []
        with ExitStack() as locks:
            for size_bytes, evict in self._candidates(books, outdated, spare, locks):
                chosen.append(evict)
                short_bytes -= size_bytes
                if short_bytes <= 0:
                    break
            if short_bytes > 0 and not in_part:
                return False
            for evict in chosen:
                evict()
        return True

    def _candidates(
        self, books: Books, outdated: Collection[str], spare: Collection[str], locks: ExitStack
    ) -> Iterator[tuple[int, Callable[[], None]]]:
        """Sizes of what may go and how it goes, in order; locked as they come.

        While a new version of a file is arriving, nobody can pin the old one: it needs no lock.
        """
        for key, record in books.left.items():
            if key not in outdated:
                yield record.size_bytes, partial(self._directory.discard, record)
        replaced = set(outdated) | books.arriving.keys()
        for key in replaced & books.present.keys():
            record = books.present[key].record
            yield record.size_bytes, partial(self._remove, record)
        idle: LRUCache[str, Record] = LRUCache(math.inf)
        for key, item in books.present.items():
            if key not in replaced and key not in spare and not item.record.pinned:
                idle[key] = item.record
        while idle:
            key, record = idle.popitem()
            lock = self._directory.seize(key)
            if lock:
                locks.enter_context(lock)
                yield record.size_bytes, partial(self._remove, record)

    def _remove(self, record: Record) -> None:
        self._directory.remove(record)
        self._on_evict()

"""What an operator does with cached files: list, pin, verify, evict."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from function.errors import CacheBusyError, ModelMissingError
from function.models.books import read_books
from function.models.checking import crc64nvme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.models.books import Present
    from function.models.directory import ModelDirectory
    from function.models.records import Record


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file that the cache brought, for listings.

    Attributes:
        key: `<folder>/<filename>`.
        size_bytes: Its length.
        etag: Identity of its content.
        source: URL of the object it is a copy of, without credentials.
        used_at: When a job used it last, as seconds since 1970.
        in_use: Whether a job uses it now or waits for it.
        pinned: Whether the operator keeps it: it is never evicted to make room.
    """

    key: str
    size_bytes: int
    etag: str
    source: str
    used_at: float
    in_use: bool
    pinned: bool


class Upkeep:
    """Operations on the files of a directory that can be written to.

    Args:
        directory: The files.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        self._directory = directory

    def files(self) -> list[CachedFile]:
        """The files in place, by key; files that the cache did not bring are not listed."""
        if self._directory.read_only:
            return []
        with self._directory.locked():
            present = read_books(self._directory).present
            return [self._describe(present[key]) for key in sorted(present)]

    def set_pinned(self, key: str, *, pinned: bool) -> None:
        """Keep a file from being evicted, or stop that.

        Raises:
            ModelMissingError: The cache has no such file.
        """
        with self._found(key) as record:
            if record.pinned != pinned:
                self._directory.rewrite(replace(record, pinned=pinned))

    def verify(self, key: str, *, on_bytes: Callable[[int], None]) -> bool:
        """Whether the bytes of a file are those that were downloaded; reads all of it, and tells how much.

        Raises:
            ModelMissingError: The cache has no such file.
        """
        with self._found(key) as record:
            pin = self._directory.pin_under_lock(key)
        with pin:
            return crc64nvme_of(self._directory.path(key), on_bytes=on_bytes) == record.crc64nvme

    def evict(self, key: str) -> None:
        """Remove a file.

        Raises:
            ModelMissingError: The cache has no such file.
            CacheBusyError: A job uses it, or it is pinned.
        """
        with self._found(key) as record:
            if record.pinned:
                raise CacheBusyError(f"model {key} is pinned; unpin it first")
            lock = self._directory.seize(key)
            if lock is None:
                raise CacheBusyError(f"a job uses model {key}")
            with lock:
                self._directory.remove(record)

    @contextmanager
    def _found(self, key: str) -> Iterator[Record]:
        """The record of a file in place; nobody decides about it until the context closes."""
        missing = ModelMissingError(f"the cache has no model {key}")
        if self._directory.read_only:
            raise missing
        with self._directory.locked():
            present = read_books(self._directory).present.get(key)
            if present is None:
                raise missing
            yield present.record

    def _describe(self, present: Present) -> CachedFile:
        record = present.record
        lock = self._directory.seize(record.key)
        if lock:
            lock.release()
        return CachedFile(
            key=record.key,
            size_bytes=record.size_bytes,
            etag=record.etag,
            source=record.source,
            used_at=present.last_use_ns / 1e9,
            in_use=lock is None,
            pinned=record.pinned,
        )

"""Fetches objects in this process: several ranges at once, each repeated from where it broke off."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from function.errors import StorageUnavailableError
from function.storage import open_store
from function.storage.objects import ObjectChangedError
from function.transfer.checksums import combine, crc64nvme, to_base64
from function.transfer.disk import lengthen
from function.transfer.fetching import Fetched, journal_of
from function.transfer.journal import (
    PART_BYTES,
    Header,
    Journal,
    crcs_in_order,
    discard,
    read_boot_id,
    resumable,
)
from function.transfer.pace import BUSY, FIRST, MOST, Pace
from function.transfer.parts import Parts
from function.transfer.patience import Patience, repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.storage.objects import ObjectInfo
    from function.storage.origins import Origin
    from function.transfer.fetching import Fetch

_CONNECTIONS = 24  # of all fetches together: each has a thread and a buffer
_CHUNK_BYTES = 1024 * 1024
_STORES = 32  # that are kept open: callers name hosts, and bring credentials


class RangedFetcher:
    """Brings files with the CPU of this process; the function uses a `FetcherProcess`.

    Args:
        open_store: The store of a URL, called with the URL and the credentials of a request, if it has any.
        part_bytes: What is fetched again when a process dies: the length of a part.
        boot_id: Name of the machine's boot; parts of another boot are read again before they count.
        sleep: Waits between attempts.

    Attributes:
        busy: Whether the GPU works; set it to leave CPU time and bandwidth to it.
    """

    def __init__(
        self,
        *,
        open_store: Callable[..., Origin] = open_store,
        part_bytes: int = PART_BYTES,
        boot_id: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.busy = False
        self._store_of = lru_cache(_STORES)(open_store)
        self._part_bytes = part_bytes
        self._boot_id = boot_id or read_boot_id()
        self._sleep = sleep
        self._limits: dict[str, int] = {}  # what the last fetch from a store found to be good
        self._lock = threading.Lock()
        self._active = 0

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Bring one file; see `Fetcher`."""
        with self._lock:
            store = self._store_of(wanted.url, *wanted.credentials)
        info = repeated(lambda: store.head(wanted.key), Patience(self._sleep))
        if (info.etag, info.size_bytes) != (wanted.etag, wanted.size_bytes):
            raise ObjectChangedError(store.object_url(wanted.key))
        with self._prepared(wanted, on_bytes) as (descriptor, journal):
            pace = Pace(self._limits.get(wanted.url, FIRST))
            parts = Parts(store, wanted.key, descriptor, journal, pace=pace, sleep=self._sleep)
            with self._counted():
                parts.bring(on_bytes=on_bytes, most=self._most)
            self._limits[wanted.url] = max(FIRST, pace.limit)
            return _verified(wanted, journal, info, store)

    @contextmanager
    def _prepared(self, wanted: Fetch, on_bytes: Callable[[int], None]) -> Iterator[tuple[int, Journal]]:
        """Part and journal, open; with what an earlier fetch left."""
        found = resumable(wanted)
        if found is None:
            discard(wanted.part)
        descriptor = os.open(wanted.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            header, crcs = found or self._begin(wanted, descriptor)
            if header.boot_id != self._boot_id:
                crcs = dict(_still_there(descriptor, header, crcs, on_bytes))
                header = Header(header.etag, header.size_bytes, header.part_bytes, self._boot_id)
            with Journal(journal_of(wanted.part), header, crcs) as journal:
                on_bytes(sum(map(header.length_of, crcs)))
                yield descriptor, journal
        except ObjectChangedError:
            discard(wanted.part)  # what came last may be of either content
            raise
        finally:
            os.close(descriptor)

    def _begin(self, wanted: Fetch, descriptor: int) -> tuple[Header, dict[int, int]]:
        lengthen(descriptor, wanted.size_bytes)
        return Header(wanted.etag, wanted.size_bytes, self._part_bytes, self._boot_id), {}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def _most(self) -> int:
        """Connections that one fetch may have now."""
        return BUSY if self.busy else max(BUSY, min(MOST, _CONNECTIONS // self._active))


def _verified(wanted: Fetch, journal: Journal, info: ObjectInfo, store: Origin) -> Fetched:
    crc = to_base64(combine(crcs_in_order(journal.header, journal.crcs)))
    if info.crc64nvme not in {"", crc}:
        discard(wanted.part)
        raise StorageUnavailableError(f"{store.object_url(wanted.key)}: the bytes don't have the object's checksum")
    return Fetched(crc)


def _still_there(
    descriptor: int, header: Header, crcs: dict[int, int], on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, int]]:
    """Parts that the disk has as the journal says."""
    for part, crc in crcs.items():
        on_bytes(0)
        if _crc_of(descriptor, header, part) == crc:
            yield part, crc


def _crc_of(descriptor: int, header: Header, part: int) -> int:
    """CRC of a part as it is on the disk."""
    crc, end = 0, header.start_of(part) + header.length_of(part)
    for start in range(header.start_of(part), end, _CHUNK_BYTES):
        crc = crc64nvme(os.pread(descriptor, min(_CHUNK_BYTES, end - start), start), crc)
    return crc

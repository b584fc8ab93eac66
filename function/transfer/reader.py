"""Fetches objects in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from function.errors import StorageUnavailableError
from function.storage import open_store
from function.storage.objects import ObjectChangedError
from function.transfer.checksums import crc64nvme, to_base64
from function.transfer.fetching import Fetched, journal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.storage.objects import ObjectStore
    from function.transfer.fetching import Fetch

_CHUNK_BYTES = 1024 * 1024


class RangedFetcher:
    """Brings files with the CPU of this process; the function uses a `FetcherProcess`.

    Args:
        open_store: The store of a URL; asked once for each.
    """

    def __init__(self, *, open_store: Callable[[str], ObjectStore] = open_store) -> None:
        self._open_store = open_store

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Bring one file; see `Fetcher`."""
        store = self._open_store(wanted.url)
        info = store.head(wanted.key)
        if (info.etag, info.size_bytes) != (wanted.etag, wanted.size_bytes):
            raise ObjectChangedError(store.object_url(wanted.key))
        crc = 0
        with wanted.part.open("wb") as part:
            for start in range(0, wanted.size_bytes, _CHUNK_BYTES):
                chunk = store.get_range(wanted.key, start, _CHUNK_BYTES, etag=wanted.etag)
                crc = crc64nvme(chunk, crc)
                part.write(chunk)
                on_bytes(len(chunk))
        found = to_base64(crc)
        if info.crc64nvme not in {"", found}:
            wanted.part.unlink()
            journal_of(wanted.part).unlink(missing_ok=True)
            raise StorageUnavailableError(f"{store.object_url(wanted.key)}: the bytes don't have the object's checksum")
        return Fetched(found)

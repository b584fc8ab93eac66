"""The seam: one object of a store is brought to one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.credentials import UrlCredential


@dataclass(frozen=True, slots=True)
class Fetch:
    """One file to bring.

    Attributes:
        url: The store, as in the settings: `s3://bucket/prefix` or `file:///dir`.
        key: The object's key below it.
        etag: The content that is wanted.
        size_bytes: Its length.
        part: Where bytes are collected. Beside it lies `journal_of(part)`; together they let a later fetch of the
            same content go on where this one ended. Only one fetch at a time may use them.
        credentials: What the requests carry, where it is meant for them, in place of what the settings say.
    """

    url: str
    key: str
    etag: str
    size_bytes: int
    part: Path
    credentials: tuple[UrlCredential, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is known of a file that was brought.

    Attributes:
        crc64nvme: CRC64NVME of the whole content, base64 as S3 writes it; computed while the bytes came in.
    """

    crc64nvme: str


class Fetcher(Protocol):
    """Brings files."""

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Collect the whole content in `wanted.part`, which then has exactly `size_bytes` verified bytes.

        Args:
            wanted: What to bring and where to.
            on_bytes: Called now and then, in one thread, with the number of bytes that have come since the last call,
                which may be 0; what an earlier fetch left is counted once, at the start. If it raises, the fetch stops
                (within ten seconds even if every connection hangs), leaves part and journal for later, and passes the
                exception on.

        Raises:
            ObjectMissingError: There is no such object.
            ObjectChangedError: It has another ETag or length now.
            StorageUnavailableError: The store failed for good, or its bytes don't have the object's checksum; part and
                journal are then gone.
            OSError: The part can't be written.
        """
        ...


def journal_of(part: Path) -> Path:
    """Where the journal of a part lies."""
    return part.with_name(f"{part.name}.journal")

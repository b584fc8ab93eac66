"""The seam: what every store can do, in the words of S3.

Keys are relative to the store's own prefix: the store of `s3://bucket/prefix` reads `prefix/a` for the key `a`.
`create` (create-if-absent, `If-None-Match: *`) is the only conditional write: every S3 implementation has it, while
`If-Match` on writes is missing in several (Ceph 16 among them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    OnBytes: TypeAlias = Callable[[int], None]


class ObjectMissingError(Exception):
    """No object under this key."""


class ObjectChangedError(Exception):
    """The object no longer has the ETag that was asked for."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as HEAD or LIST describes it.

    Attributes:
        key: Key relative to the store.
        size_bytes: Content length.
        etag: Opaque identity of the content, without quotes.
        modified_at: Last-Modified, by the store's clock.
        media_type: Content-Type; empty in listings, which do not carry it.
        version_id: Version on a versioned bucket, else None.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime
    media_type: str = ""
    version_id: str | None = None


class ObjectStore(Protocol):
    """A bucket with a prefix, or a directory.

    Every method raises `function.errors.StorageUnavailableError` when the store does not answer or refuses our
    credentials, and `function.errors.InputRefusedError` for a key that is no valid key (empty, `..`, absolute).
    """

    @property
    def url(self) -> str:
        """Where the store lies, as in the settings: `s3://bucket/prefix` or `file:///dir`."""
        ...

    def object_url(self, key: str) -> str:
        """Canonical URL of one object: `s3://bucket/prefix/key` or `file:///dir/key`."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            ObjectMissingError: There is none.
        """
        ...

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read one small object whole.

        Raises:
            ObjectMissingError: There is none.
            function.errors.StorageUnavailableError: It is larger than `max_bytes`.
        """
        ...

    def get_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """Read `length` bytes from offset `start` of the content with this ETag (shorter at the end).

        Raises:
            ObjectMissingError: There is none.
            ObjectChangedError: The content has another ETag now.
        """
        ...

    def download(self, key: str, path: Path, *, etag: str, on_bytes: OnBytes | None = None) -> None:
        """Write the content with this ETag to `path`, which may exist; the caller makes it appear.

        Args:
            key: Object to read.
            path: File to write; left incomplete on an error.
            etag: The content that is wanted.
            on_bytes: Called with the number of bytes written since the last call.

        Raises:
            ObjectMissingError: There is none.
            ObjectChangedError: The content has another ETag now.
            OSError: The file can't be written.
        """
        ...

    def put(self, key: str, data: bytes, *, media_type: str = "application/octet-stream") -> ObjectInfo:
        """Write one small object, replacing what was there."""
        ...

    def create(self, key: str, data: bytes, *, media_type: str = "application/json") -> bool:
        """Write one small object unless the key exists; say whether it was written.

        Of any number of concurrent callers exactly one gets True.
        """
        ...

    def upload(self, key: str, source: BinaryIO, *, size_bytes: int, media_type: str) -> ObjectInfo:
        """Write one object of any size from a stream, in bounded memory."""
        ...

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in the order of their keys' UTF-8 bytes."""
        ...

    def delete(self, key: str) -> None:
        """Remove one object; no error when there is none."""
        ...

    def presign(self, key: str, *, expires_seconds: int) -> str:
        """A URL that reads the object without credentials until it expires.

        A local directory has no such URL: it returns the path under which the function serves the object
        (`/outputs/...`).
        """
        ...

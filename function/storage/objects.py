"""The seam: what every store can do, in the words of S3.

Keys are relative to the store's own prefix: the store of `s3://bucket/prefix` reads `prefix/a` for the key `a`.
`create` (create-if-absent, `If-None-Match: *`) is the only conditional write: every S3 implementation has it, while
`If-Match` on writes is missing in several (Ceph 16 among them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from function.errors import InputRefusedError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

    OnBytes: TypeAlias = Callable[[int], None]


MAX_KEY_BYTES = 1024
"""S3's limit on the UTF-8 bytes of a key, the store's prefix included."""

_SHOWN_CHARACTERS = 80
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")  # Unicode's categories Cc and Cs, and a backslash


class ObjectMissingError(Exception):
    """No object under this key."""


class ObjectChangedError(Exception):
    """The object no longer has the ETag that was asked for."""


class TransientStorageError(StorageUnavailableError):
    """The same request may succeed when it is repeated at once: a connection broke, a server hiccuped."""


class SlowDownError(TransientStorageError):
    """The store asks for fewer requests at a time."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as HEAD or LIST describes it.

    Attributes:
        key: Key relative to the store.
        size_bytes: Content length.
        etag: Opaque identity of the content, without quotes; empty in listings of a directory, which would have to
            read every file for it: HEAD the object.
        modified_at: Last-Modified, by the store's clock.
        media_type: Content-Type; empty in listings, which do not carry it.
        version_id: Version on a versioned bucket, else None.
        crc64nvme: CRC64NVME of the whole content, base64 as S3 writes it; empty in listings and in answers to writes,
            and where the store has none.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime
    media_type: str = ""
    version_id: str | None = None
    crc64nvme: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Part of a store at one moment.

    Attributes:
        objects: In the order of their keys' UTF-8 bytes.
        taken_at: When, or earlier, by the clock that `ObjectInfo.modified_at` is of: what was written by then is in it.
            Up to a second earlier on S3, and by as much as the request took.
        complete: Whether there are no more.
    """

    objects: tuple[ObjectInfo, ...]
    taken_at: datetime
    complete: bool


class RangeStream(Protocol):
    """The bytes of a range, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer and say how far: at least one byte, 0 at the end of the range or where the answer broke off.

        Raises:
            TransientStorageError: The connection broke or stalled.
        """
        ...

    def abort(self) -> None:
        """End a `readinto` in which another thread waits, however slowly bytes come; there is no more to be read."""
        ...


class ObjectStore(Protocol):
    """A bucket with a prefix, or a directory.

    Every method raises `function.errors.StorageUnavailableError` when the store does not answer or refuses our
    credentials, and `function.errors.InputRefusedError` for a key that is no valid key (see `check_key`).
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

    def open_range(self, key: str, start: int, length: int, *, etag: str) -> AbstractContextManager[RangeStream]:
        """A stream of `length` bytes from offset `start`, both inside the content with this ETag.

        Nothing is repeated in here: the caller goes on where a stream broke off.

        Raises:
            ObjectMissingError: There is none.
            ObjectChangedError: The content has another ETag now; for a directory perhaps only when the stream closes.
            TransientStorageError: The store did not answer, or may answer when asked again.
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
        """Write one small object, replacing what was there.

        A directory keeps no media types: it goes by the key's extension.
        """
        ...

    def create(self, key: str, data: bytes, *, media_type: str = "application/json") -> bool:
        """Write one small object unless the key exists; say whether it was written.

        Of any number of concurrent callers exactly one gets True.
        """
        ...

    def upload(self, key: str, source: Readable, *, size_bytes: int, media_type: str) -> ObjectInfo:
        """Write one object of any size from a stream, in bounded memory.

        Args:
            key: Object to write; it appears whole or not at all.
            source: Read from where it stands; the caller closes it.
            size_bytes: How much of the stream is the object.
            media_type: As for `put`.

        Raises:
            ValueError: The stream ended before `size_bytes`.
        """
        ...

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in the order of their keys' UTF-8 bytes.

        Objects that no key can name (`check_key`) are left out, for example the `folder/` markers of S3 consoles.

        Args:
            prefix: Any beginning of a key, not only whole segments.
            start_after: Leave out this key and everything before it.
        """
        ...

    def list_page(self, prefix: str = "", *, start_after: str = "", limit: int = 1000) -> Listing:
        """The first objects that `list_objects` would give, with the store's time, by one request.

        Args:
            prefix: As for `list_objects`.
            start_after: As for `list_objects`.
            limit: How many at most, up to a thousand.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove one object; no error when there is none."""
        ...

    def presign(self, key: str, *, expires_seconds: int) -> str:
        """A URL that reads the object without credentials until it expires.

        A local directory has no such URL: it returns the path of the key, under which the function serves those of
        outputs (`/outputs/...`).
        """
        ...


class Readable(Protocol):
    """A stream that is read once, from where it stands."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; all that is left if it is negative. None are left when there are none."""
        ...


class SizedReader:
    """A stream of which exactly `size_bytes` are read; it can't be rewound.

    Raises:
        ValueError: On reading, when the stream ends early.
    """

    def __init__(self, source: Readable, *, size_bytes: int) -> None:
        self._source = source
        self._size_bytes = self._left_bytes = size_bytes

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, fewer only at the end (negative: all that is left), however the source hands them out.

        A part of a multipart upload is one read, and S3 refuses short parts.
        """
        wanted = self._left_bytes if size < 0 else min(size, self._left_bytes)
        chunks: list[bytes] = []
        while wanted > 0:
            chunk = self._source.read(wanted)
            if not chunk:
                missing = f"{self._left_bytes} of {self._size_bytes} bytes"
                raise ValueError(f"the stream ended early: {missing} are missing")
            chunks.append(chunk)
            wanted -= len(chunk)
            self._left_bytes -= len(chunk)
        return b"".join(chunks)


def check_key(key: str) -> str:
    """Return the key when every store can hold it, and no path or header can be smuggled in by it.

    Raises:
        InputRefusedError: It is empty, longer than MAX_KEY_BYTES, absolute, no valid Unicode, or holds an empty, `.`
            or `..` segment, a backslash or a control character.
    """
    problem = _key_problem(key)
    if problem:
        raise InputRefusedError(f"the key {key[:_SHOWN_CHARACTERS]!r} {problem}")
    return key


def _key_problem(key: str) -> str:
    if not key:
        return "is empty"
    if _FORBIDDEN.search(key):
        return "holds a control character, a backslash or half a surrogate pair"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"is longer than {MAX_KEY_BYTES} bytes"
    if any(segment in {"", ".", ".."} for segment in key.split("/")):
        return "is no plain relative path"
    return ""


def is_key(text: str) -> bool:
    """Whether `check_key` would accept it."""
    return not _key_problem(text)


_MEDIA_TYPES = {
    "3gp": "video/3gpp",
    "avi": "video/x-msvideo",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "flac": "audio/flac",
    "flv": "video/x-flv",
    "gif": "image/gif",
    "heic": "image/heic",
    "ico": "image/x-icon",
    "glb": "model/gltf-binary",
    "html": "text/html",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "m4a": "audio/mp4",
    "m4v": "video/x-m4v",
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "png": "image/png",
    "svg": "image/svg+xml",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "txt": "text/plain",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
    "wmv": "video/x-ms-wmv",
}


def media_type_of(name: str) -> str:
    """Media type by the name's extension, the same on every machine (`mimetypes` reads the system's tables)."""
    _stem, dot, extension = name.rpartition(".")
    return _MEDIA_TYPES.get(dot and extension.lower(), "application/octet-stream")


def is_media_name(name: str) -> bool:
    """Whether a name ends as that of a picture, a video or a sound does."""
    return media_type_of(name).partition("/")[0] in {"image", "video", "audio"}

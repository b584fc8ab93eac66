"""What a server's answer says about a file, checked: its length, its identity, and whether these are the bytes."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING

from function.errors import InputRefusedError, StorageUnavailableError
from function.storage.connecting import cut
from function.storage.objects import (
    ObjectChangedError,
    ObjectInfo,
    ObjectMissingError,
    SlowDownError,
    TransientStorageError,
)

if TYPE_CHECKING:
    import socket
    from http.client import HTTPConnection, HTTPResponse

_STRONG_ETAG = re.compile(r'"([\x21\x23-\x7e]{1,128})"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")
_BUFFER_BYTES = 64 * 1024
_OK = 200
_PARTIAL = 206
_UNSATISFIABLE = 416


class HttpAnswer:
    """One answer, with the connection that ends with it.

    Args:
        response: Its head has been read.
        connection: Where it came from.
        connected: The connection's socket, which belongs to the answer by now.

    Attributes:
        status: Its status.
        size_bytes: Length of the whole file, as far as the answer says it.
        span: First and last byte of the file that the body has; None for the whole.
    """

    def __init__(self, response: HTTPResponse, connection: HTTPConnection, connected: socket.socket) -> None:
        self.status = response.status
        self._response = response
        self._connection = connection
        self._connected = connected
        self.size_bytes, self.span = self._extent()

    def header(self, name: str) -> str:
        """A header's value, or an empty text."""
        return self._response.getheader(name) or ""

    def readinto(self, buffer: memoryview) -> int:
        """Read some of the body."""
        return self._response.readinto(buffer)

    def abort(self) -> None:
        """End a `readinto` of another thread."""
        cut(self._connected)

    def close(self) -> None:
        """End answer and connection."""
        self._response.close()
        self._connection.close()

    def _extent(self) -> tuple[int | None, tuple[int, int] | None]:
        if self.status == _PARTIAL:
            span = _CONTENT_RANGE.fullmatch(self.header("Content-Range"))
            return (int(span[3]), (int(span[1]), int(span[2]))) if span else (None, None)
        length = _LENGTH.fullmatch(self.header("Content-Length"))
        return (int(length[0]) if length else None), None


class _Stream:
    """The body of an answer, no further than the range reaches."""

    def __init__(self, answer: HttpAnswer, shown: str, length: int) -> None:
        self._answer = answer
        self._shown = shown
        self._left_bytes = length

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer from the socket."""
        try:
            count = self._answer.readinto(buffer[: self._left_bytes])
        except (OSError, HTTPException) as error:
            raise TransientStorageError(f"{self._shown}: the answer broke off ({type(error).__name__})") from error
        self._left_bytes -= count
        return count

    def abort(self) -> None:
        """End a `readinto` of another thread."""
        self._answer.abort()


def info_of(answer: HttpAnswer, key: str, shown: str) -> ObjectInfo:
    """What a HEAD, or a GET of the first byte, says of a file.

    Raises:
        As `HttpsOrigin.head`.
    """
    if answer.status == _UNSATISFIABLE:
        raise InputRefusedError(f"{shown}: the file is empty")
    _check_status(answer, shown)
    if answer.size_bytes is None:
        raise InputRefusedError(f"{shown}: the server does not say how long the file is")
    return ObjectInfo(
        key=key,
        size_bytes=answer.size_bytes,
        etag=_identity(answer, shown),
        modified_at=_modified_at(answer) or datetime.fromtimestamp(0, UTC),
        media_type=answer.header("Content-Type"),
    )


def read_range(answer: HttpAnswer, shown: str, start: int, length: int, *, etag: str) -> _Stream:
    """The body of an answer that is this range of this content.

    Raises:
        As `HttpsOrigin.open_range`.
    """
    _check_status(answer, shown)
    if answer.size_bytes is not None and _identity(answer, shown) != etag:
        raise ObjectChangedError(shown)
    whole = answer.status == _OK and (start, length) == (0, answer.size_bytes)
    if not whole and answer.span != (start, start + length - 1):
        raise InputRefusedError(f"{shown}: the server has no ranges; put the file where they are served")
    return _Stream(answer, shown, length)


class _WholeStream:
    """The body of an answer to its end, whose length need not be known."""

    def __init__(self, answer: HttpAnswer, shown: str) -> None:
        self._answer = answer
        self._shown = shown
        self._done_bytes = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer from the socket; at the end, make sure that it is one."""
        try:
            count = self._answer.readinto(buffer)
        except (OSError, HTTPException) as error:
            raise TransientStorageError(f"{self._shown}: the answer broke off ({type(error).__name__})") from error
        self._done_bytes += count
        if not count and self._answer.size_bytes not in {None, self._done_bytes}:
            raise TransientStorageError(f"{self._shown}: the answer broke off")
        return count

    def abort(self) -> None:
        """End a `readinto` of another thread."""
        self._answer.abort()


def stream_whole(answer: HttpAnswer, shown: str) -> _WholeStream:
    """The body of an answer that is a whole file.

    Raises:
        As `HttpsOrigin.open_whole`.
    """
    _check_status(answer, shown)
    if answer.span is not None:
        raise InputRefusedError(f"{shown}: the server sends a part of the file that nobody asked for")
    return _WholeStream(answer, shown)


def read_whole(answer: HttpAnswer, shown: str, *, max_bytes: int) -> bytes:
    """The body of an answer that is a whole small file.

    Raises:
        As `HttpsOrigin.get`.
    """
    stream, content = stream_whole(answer, shown), bytearray()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while count := stream.readinto(buffer):
        content += buffer[:count]
        if len(content) > max_bytes:
            raise StorageUnavailableError(f"{shown}: larger than {max_bytes} bytes")
    return bytes(content)


_CREDENTIALS = "check the request's credentials for this URL, or MODEL_URL_CREDENTIALS"
_ERRORS: dict[int, tuple[type[Exception], str]] = {
    401: (InputRefusedError, f"the server refuses us (401); {_CREDENTIALS}"),
    403: (InputRefusedError, f"the server refuses us (403); {_CREDENTIALS}"),
    404: (ObjectMissingError, "there is no such file"),
    408: (TransientStorageError, "the server answered 408"),
    410: (ObjectMissingError, "there is no such file any more"),
    412: (ObjectChangedError, "the file was replaced"),
    _UNSATISFIABLE: (ObjectChangedError, "the file is shorter now"),
    429: (SlowDownError, "the server asks for fewer requests (429)"),
    500: (TransientStorageError, "the server answered 500"),
    502: (TransientStorageError, "the server answered 502"),
    503: (SlowDownError, "the server asks for fewer requests (503)"),
    504: (TransientStorageError, "the server answered 504"),
}


def _check_status(answer: HttpAnswer, shown: str) -> None:
    if answer.status not in {_OK, _PARTIAL}:
        error, reason = _ERRORS.get(answer.status, (StorageUnavailableError, f"the server answered {answer.status}"))
        raise error(f"{shown}: {reason}")
    if answer.header("Content-Encoding").lower() not in {"", "identity"}:
        raise InputRefusedError(f"{shown}: the server compresses what must come as it is")


def _identity(answer: HttpAnswer, shown: str) -> str:
    strong = _STRONG_ETAG.fullmatch(answer.header("ETag"))
    if strong:
        return strong[1]
    modified_at = _modified_at(answer)
    if modified_at is None:
        raise InputRefusedError(f"{shown}: the server sends neither a strong ETag nor Last-Modified")
    return f"modified-{modified_at.timestamp():.0f}-{answer.size_bytes}"


def _modified_at(answer: HttpAnswer) -> datetime | None:
    try:
        return parsedate_to_datetime(answer.header("Last-Modified")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None

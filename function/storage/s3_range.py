"""One range of an S3 object as a stream: what the answer promises is checked, and its bytes are not copied twice."""

from __future__ import annotations

from http.client import HTTPException
from typing import TYPE_CHECKING

from function.errors import StorageUnavailableError
from function.storage.connecting import cut
from function.storage.objects import ObjectChangedError
from function.storage.s3_errors import error_of_failure

if TYPE_CHECKING:
    import socket

    from botocore.response import StreamingBody
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef
    from urllib3 import HTTPResponse


class S3Stream:
    """The body of one answer.

    botocore's own `readinto` reads into a new object and copies it. At a gigabyte per second that is a fifth of all
    CPU time, so this reads from the answer of `http.client` underneath. It has no public name in between.

    Args:
        body: As botocore gives it.
        url: The object, for errors.
        length: How many bytes it has; after them the connection is used again.
    """

    def __init__(self, body: StreamingBody, url: str, length: int) -> None:
        self._response: HTTPResponse = body._raw_stream  # type: ignore[attr-defined]  # noqa: SLF001  (see above)
        self._connected: socket.socket = self._response._fp.fp.raw._sock  # noqa: SLF001  (see above)
        self._url = url
        self._left_bytes = length

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer from the socket."""
        try:
            count: int = self._response._fp.readinto(buffer)  # type: ignore[union-attr]  # noqa: SLF001  (see above)
        except (OSError, HTTPException) as error:
            raise error_of_failure("ResponseStreamingError", self._url) from error
        self._left_bytes -= count
        return count

    def abort(self) -> None:
        """End a `readinto` of another thread."""
        cut(self._connected)

    def close(self) -> None:
        """Give the connection back, or close it when bytes are still to come."""
        if self._left_bytes:
            self._response.close()
        else:
            self._response.release_conn()


def check_etag(found: str, etag: str, url: str) -> None:
    """Refuse another content: not every server heeds `If-Match`.

    Raises:
        ObjectChangedError: It is another one.
    """
    if found.strip('"') != etag:
        raise ObjectChangedError(url)


def check_start(answer: GetObjectOutputTypeDef, start: int, *, etag: str, url: str) -> None:
    """Refuse an answer that is not of this content from this offset on, however far: not every server heeds `Range`.

    Raises:
        ObjectChangedError: It belongs to another content.
        StorageUnavailableError: It begins elsewhere.
    """
    check_etag(answer["ETag"], etag, url)
    _check_span(answer, f"bytes {start}-", url)


def check_range(answer: GetObjectOutputTypeDef, start: int, length: int, *, etag: str, url: str) -> None:
    """Refuse an answer that is not this whole range of this content.

    Raises:
        As `check_start`.
    """
    check_etag(answer["ETag"], etag, url)
    _check_span(answer, f"bytes {start}-{start + length - 1}/", url)


def _check_span(answer: GetObjectOutputTypeDef, beginning: str, url: str) -> None:
    if not answer.get("ContentRange", "").startswith(beginning):
        raise StorageUnavailableError(f"{url}: the store ignores the Range header: use one with ranges")

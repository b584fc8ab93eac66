"""Bodies of requests: read once, in the memory of one copy, and parsed in that of a second one.

A body of hundreds of megabytes is one file in base64 as a rule, so what was parsed is as large as what came.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from function.errors import BodyTooLargeError, InvalidRequestError
from function.setting_values import MIB

if TYPE_CHECKING:
    from typing import BinaryIO

    from flask import Request

_PIECE_BYTES = 256 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows' editors write one


class RequestBody:
    """What a request brought. It can be used once: whoever takes or parses it has the only copy.

    Args:
        buffer: The bytes.
        sha256: Digest of path and bytes, in hexadecimal; "" where nobody will ask for it.
    """

    def __init__(self, buffer: BytesIO, sha256: str = "") -> None:
        self._buffer = buffer
        self.sha256 = sha256

    def take(self) -> bytes:
        """The bytes."""
        data = self._buffer.getvalue()  # the buffer's own: it is copied only if the buffer is written to again
        self._buffer.close()
        return data


def read_body(request: Request, *, max_bytes: int) -> RequestBody:
    """Read the body, at most `max_bytes` of it.

    It is read past werkzeug, whose limit cuts a chunked body off without an error (werkzeug 3.1).

    Raises:
        BodyTooLargeError: It is larger; with a Content-Length nothing is read, without one no more than one byte more.
        InvalidRequestError: The connection ended before the body did.
    """
    length = request.content_length
    too_large = BodyTooLargeError(f"the body is larger than {max_bytes // MIB} MiB (MAX_BODY_SIZE_MB)")
    if length is not None and length > max_bytes:
        raise too_large
    digest = hashlib.sha256(request.path.encode() + b"\0") if "Idempotency-Key" in request.headers else None
    data = BytesIO()
    stream: BinaryIO = request.environ["wsgi.input"]
    wanted = max_bytes + 1 if length is None else length
    while piece := stream.read(min(_PIECE_BYTES, wanted - data.tell())):
        data.write(piece)
        if digest:
            digest.update(piece)
    if data.tell() > max_bytes:
        raise too_large
    if length is not None and data.tell() < length:
        raise InvalidRequestError("the connection ended before the body did")
    return RequestBody(data, digest.hexdigest() if digest else "")


def parse_json(body: RequestBody) -> Any:  # noqa: ANN401  (JSON is any value)
    """The JSON value of a body, which is gone afterwards.

    No text is made of it on the way, which could be four times as large.

    Raises:
        InvalidRequestError: It is not JSON.
    """
    try:
        return from_json(body.take().removeprefix(_BYTE_ORDER_MARK))
    except ValueError as error:  # also a whole number of more than 4300 digits, or 200 lists in one another
        raise InvalidRequestError("the body is not JSON") from error

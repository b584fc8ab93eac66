"""A file of the engine, read through its `/view`: for files that don't lie where this process can read them."""

from __future__ import annotations

import http.client
import io
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from function.engine.wire import EngineConnection
from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from function.engine.results import EngineFile

_PATIENCE_SECONDS = 30.0
_SLOWEST_BYTES_PER_SECOND = 1_000_000
_HEAD_BYTES = 1024**2
_OK = 200
_NO_SUCH_FILE = frozenset({400, 403, 404})


class ViewedFile:
    """One file, read from its beginning to its end in the memory of one read.

    A read may take 30 s and a second for each megabyte that it asks for, whatever the engine sends meanwhile.

    Attributes:
        size_bytes: Its length.
        version: What changes when the file is written to or replaced.
    """

    def __init__(self, connection: EngineConnection, response: http.client.HTTPResponse, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.version: tuple[object, ...] = (response.getheader("ETag"), response.getheader("Last-Modified"), size_bytes)
        self._left_bytes = size_bytes
        self._connection = connection
        self._response = response
        self._head = bytearray()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`; all that is left if it is negative.

        Raises:
            EngineUnavailableError: They don't come in time, or the engine is gone.
        """
        wanted = self._left_bytes if size < 0 else min(size, self._left_bytes)
        self._connection.deadline = time.monotonic() + _PATIENCE_SECONDS + wanted / _SLOWEST_BYTES_PER_SECOND
        try:
            data = self._response.read(wanted)
        except (OSError, http.client.HTTPException) as error:
            raise EngineUnavailableError(f"the engine broke off a file: {type(error).__name__}") from error
        if len(data) < wanted:
            raise EngineUnavailableError(f"the engine broke off a file of {self.size_bytes} bytes")
        self._left_bytes -= wanted
        if len(self._head) < _HEAD_BYTES:
            self._head += data[: _HEAD_BYTES - len(self._head)]
        return data

    def picture(self) -> io.BytesIO:
        """The beginning of what was read, which has the dimensions of nearly every image."""
        return io.BytesIO(self._head)

    def whole(self) -> io.BytesIO:
        """All of it, read."""
        return io.BytesIO(self.read())

    def close(self) -> None:
        """End the connection, also in the middle of the file."""
        self._response.close()
        self._connection.close()


def view_file(host: str, port: int, file: EngineFile) -> ViewedFile | None:
    """Begin to read a file of the engine; None where it has no such file.

    Raises:
        EngineUnavailableError: It does not answer, or not as ComfyUI does.
    """
    query = urlencode({"filename": file.filename, "subfolder": file.subfolder, "type": file.folder_type})
    connection = EngineConnection(host, port, timeout_seconds=_PATIENCE_SECONDS)
    try:
        connection.request("GET", f"/view?{query}")
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise EngineUnavailableError(f"the engine does not answer GET /view: {type(error).__name__}") from error
    if response.status == _OK and response.length is not None:
        return ViewedFile(connection, response, response.length)
    connection.close()
    if response.status in _NO_SUCH_FILE:
        return None
    raise EngineUnavailableError(f"the engine answered GET /view with HTTP {response.status} and no file")

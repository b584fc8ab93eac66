"""HTTP requests to the engine, each over at its deadline whatever the engine does.

A socket's own timeout begins anew with each byte, so an engine that sends a byte now and then would hold a caller for
ever; and an answer has no length but the one that its reader allows.
"""

from __future__ import annotations

import http.client
import select
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer, WriteableBuffer


class AnswerTooLargeError(EngineUnavailableError):
    """An answer is larger than its reader allows; it was not read to its end."""


class EngineConnection(http.client.HTTPConnection):
    """A connection whose next answer has to come by `deadline`.

    Args:
        host: Where the engine listens.
        port: Where the engine listens.
        timeout_seconds: From now to the end of the first answer.
        clock: Monotonic seconds.

    Attributes:
        deadline: Monotonic seconds; may be moved between two reads.
    """

    def __init__(
        self, host: str, port: int, *, timeout_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(host, port)
        self._clock = clock
        self.allow(timeout_seconds)

    def allow(self, timeout_seconds: float) -> None:
        """Give the next answer this time from now, connecting included where that is needed again."""
        self.timeout = timeout_seconds
        self.deadline = self._clock() + timeout_seconds

    def connect(self) -> None:
        """Connect, and send and read under the deadline from then on."""
        super().connect()
        self.sock = _DeadlineSocket(self.sock, self.left_seconds)

    def has_ended(self) -> bool:
        """Whether the engine has ended the connection while nothing was asked: there is something to read."""
        if self.sock is None:
            return False
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(0))

    def left_seconds(self) -> float:
        """Time to the deadline.

        Raises:
            TimeoutError: There is none left.
        """
        left = self.deadline - self._clock()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        return left


class _DeadlineSocket(socket.socket):
    def __init__(self, opened: socket.socket, left_seconds: Callable[[], float]) -> None:
        super().__init__(opened.family, opened.type, opened.proto, fileno=opened.detach())
        self._left_seconds = left_seconds

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self.settimeout(self._left_seconds())
        super().sendall(data, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self._left_seconds())
        return super().recv_into(buffer, nbytes, flags)


def ask(
    connection: EngineConnection, method: str, path: str, content: bytes | None = None, *, max_bytes: int
) -> tuple[int, bytes]:
    """Send a request and read its answer; the connection stays open if that came whole and the engine keeps it open.

    Returns:
        Status and body.

    Raises:
        EngineUnavailableError: No answer by the deadline, or none that is HTTP; AnswerTooLargeError.
    """
    with ExitStack() as closing:
        closing.callback(connection.close)
        try:
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            response = closing.enter_context(connection.getresponse())
            too_large = (response.length or 0) > max_bytes
            payload = b"" if too_large else response.read(max_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            raise EngineUnavailableError(f"the engine does not answer {method} {path}: {_reason(error)}") from error
        if too_large or len(payload) > max_bytes:
            raise AnswerTooLargeError(f"the engine's answer to {method} {path} is larger than {max_bytes >> 20} MiB")
        if response.isclosed():  # it was read to its end
            closing.pop_all()
    return response.status, payload


def _reason(error: Exception) -> str:
    """The error in few words: those of http.client quote what the engine sent."""
    return str(error) if isinstance(error, OSError) else f"that is no HTTP answer ({type(error).__name__})"

"""The socket of one run: ComfyUI's messages, as they come, also after it was lost."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.sync.client import ClientConnection

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 0.0  # ComfyUI collects garbage after a run and answers the close only then (0.3 to 0.6 s measured)
_MAX_FRAME_BYTES = 16 * 1024**2
"""Previews have a tenth of it. A larger frame costs the connection; the run is found by asking."""


class NotConnectedError(EngineUnavailableError):
    """The engine took no connection, so nothing was submitted: the run may be tried again at once."""


class RunSocket:
    """The socket of one run.

    It comes back under the same client id, because the engine addresses messages to the id that the run was submitted
    with. ComfyUI may not have noticed the old connection's end and then drops the new one's registration together with
    it, so after a loss `was_lost` stays true and silence means nothing any more.

    Args:
        address: Host and port.
        deadline: Monotonic seconds; connecting ends there.
        hello: The first message of each connection; "" for none.
        clock: Monotonic seconds.
    """

    def __init__(
        self, address: str, *, deadline: float, hello: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client_id = uuid.uuid4().hex
        self.was_lost = False
        self._url = f"ws://{address}/ws?clientId={self.client_id}"
        self._deadline = deadline
        self._hello = hello
        self._clock = clock
        self._connection: ClientConnection | None = None
        self._closing = ExitStack()

    def open(self) -> None:
        """Connect.

        Raises:
            NotConnectedError: The engine takes no connection.
        """
        try:
            self._connection = self._connect()
        except (OSError, WebSocketException) as error:
            raise NotConnectedError(f"the engine takes no connection: {error}") from error

    def receive(self, timeout_seconds: float) -> dict[str, Any] | bytes | None:
        """The next message, the bytes of a binary one; None when none came in time or the connection is lost."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            frame = self._connection.recv(timeout=timeout_seconds)
        except TimeoutError:
            return None
        except (OSError, WebSocketException):
            self.was_lost = True
            self.close()
            time.sleep(timeout_seconds)  # a refused connection fails at once
            return None
        return frame if isinstance(frame, bytes) else _parse_message(frame)

    def close(self) -> None:
        """End the connection; does nothing if there is none."""
        self._connection = None
        self._closing.close()

    def _connect(self) -> ClientConnection:
        opening = connect(
            self._url,
            open_timeout=min(_CONNECT_SECONDS, max(0.1, self._deadline - self._clock())),
            close_timeout=_CLOSE_SECONDS,
            ping_interval=None,  # a node may keep the interpreter busy for longer than any ping waits
            max_size=_MAX_FRAME_BYTES,
            compression=None,
            proxy=None,
        )
        connection = self._closing.enter_context(opening)
        if self._hello:
            connection.send(self._hello)
        return connection


def _parse_message(frame: str) -> dict[str, Any]:
    """A message; {} for whatever isn't ComfyUI's."""
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}

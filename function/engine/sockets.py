"""The socket of runs: ComfyUI's messages, as they come, also after it was lost."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from websockets.exceptions import WebSocketException

from function.engine.websocket import WebSocket
from function.errors import EngineNotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 1.0
_LEAST_SECONDS = 0.1
_MAX_MESSAGE_BYTES = 16 * 1024**2
"""Previews have a tenth of it. A larger message costs the connection; the run is found by asking."""


class NotConnectedError(EngineNotReadyError):
    """The engine took no connection, so nothing was submitted: the run may be tried again at once."""


class EngineBusyError(NotConnectedError):
    """It took the connection, or would, and did not answer: ComfyUI does so while it lists thousands of files."""


class RunSocket:
    """The socket of one run after the other, each of which says `open` first.

    It comes back under the same client id, because the engine addresses messages to the id that the run was submitted
    with. ComfyUI may not have noticed the old connection's end and then drops the new one's registration together with
    it, so after a loss `was_lost` stays true and silence means nothing any more.

    Args:
        address: Host and port.
        hello: The first message of each connection; "" for none.
        trusted_seconds: For how long after a message the engine counts as alive without being asked.
        clock: Monotonic seconds.

    Attributes:
        client_id: What the engine knows it by.
        hello: As given.
        was_lost: Whether a run has lost it.
    """

    def __init__(
        self,
        address: str,
        *,
        hello: str,
        trusted_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client_id = uuid.uuid4().hex
        self.hello = hello
        self.was_lost = False
        self._url = f"ws://{address}/ws?clientId={self.client_id}"
        self._trusted_seconds = trusted_seconds
        self._deadline = 0.0
        self._heard_at = 0.0
        self._clock = clock
        self._connection: WebSocket | None = None

    def open(self, deadline: float) -> None:
        """Connect for a run.

        Args:
            deadline: Monotonic seconds; connecting ends there, now and after a loss.

        Raises:
            NotConnectedError: The engine takes no connection, or has no answer: EngineBusyError.
        """
        self._deadline = deadline
        try:
            self._connection = self._connect()
        except TimeoutError as error:
            raise EngineBusyError("the engine takes no connection: it does not answer") from error
        except (OSError, WebSocketException) as error:
            raise NotConnectedError(f"the engine takes no connection: {error}") from error

    def reopen(self, deadline: float) -> bool:
        """Whether one more run may have this connection. What has come since the last one is dropped.

        The engine has to be there: it holds the connection, and has just been heard or answers now.
        """
        self._deadline = deadline
        try:
            if self._connection:
                self._connection.drop(self._patience(_ANSWER_SECONDS))
                if self._clock() - self._heard_at >= self._trusted_seconds:
                    self._connection.ping(self._patience(_ANSWER_SECONDS))
        except (OSError, WebSocketException):
            self.close()
        return self._connection is not None

    def receive(self, timeout_seconds: float) -> dict[str, Any] | bytes | None:
        """The next message, the bytes of a binary one; None when none came in time or the connection is lost."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            frame = self._connection.receive(timeout_seconds)
            self._heard_at = self._clock()
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
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _connect(self) -> WebSocket:
        """Connect and say hello.

        No pings are sent while a run goes on: a node may keep the engine's interpreter busy for longer than any ping
        waits.
        """
        connection = WebSocket(
            self._url, timeout_seconds=self._patience(_CONNECT_SECONDS), max_bytes=_MAX_MESSAGE_BYTES
        )
        if self.hello:
            connection.send(self.hello)
        return connection

    def _patience(self, most_seconds: float) -> float:
        return min(most_seconds, max(_LEAST_SECONDS, self._deadline - self._clock()))


def _parse_message(frame: str) -> dict[str, Any]:
    """A message; {} for whatever isn't ComfyUI's."""
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}

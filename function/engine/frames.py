"""A WebSocket connection that is read in the thread that asks for a message.

The client of `websockets.sync` reads in a thread of its own, which costs a start and an end for each connection and two
changes of the thread for each message: 2 ms of a run that takes 5. This one has the same protocol, without the thread.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosedError, InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.http11 import Response

_READ_BYTES = 65_536
_SEND_SECONDS = 5.0


class FrameSocket:
    """One connection, open from the beginning; for one thread at a time.

    It sends no pings of its own accord: a node may keep the engine's interpreter busy for longer than any ping waits.
    Those of the server are answered while a message is waited for.

    Args:
        url: A `ws://` URL.
        hellos: Messages to send first.
        open_seconds: How long connecting may take.
        max_bytes: Length of a message above which the connection is given up.

    Raises:
        OSError: Nobody listens, or nobody answers in time.
        WebSocketException: What listens doesn't speak the protocol.
    """

    def __init__(self, url: str, hellos: Sequence[str] = (), *, open_seconds: float, max_bytes: int) -> None:
        deadline = time.monotonic() + open_seconds
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri, max_size=max_bytes)
        self._messages: deque[str | bytes] = deque()
        self._parts: list[Frame] = []
        self._pongs = 0
        self._connection = socket.create_connection((uri.host, uri.port), open_seconds)
        try:
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands(deadline)
            for hello in hellos:
                self._protocol.send_text(hello.encode())
            self._flush()
        except BaseException:
            self.close()
            raise

    def recv(self, timeout: float) -> str | bytes:
        """The next message.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            TimeoutError: None came in time.
            OSError: The connection broke.
            WebSocketException: The server closed it, or sent what isn't the protocol.
        """
        deadline = time.monotonic() + timeout
        while not self._messages:
            self._read_open(deadline)
        return self._messages.popleft()

    def ping(self, timeout: float) -> None:
        """Have the server answer; messages that come before its answer are dropped. Raises as `recv`."""
        deadline = time.monotonic() + timeout
        answered = self._pongs
        self._protocol.send_ping(b"")
        self._flush()
        while self._pongs == answered:
            self._read_open(deadline)
            self._messages.clear()

    def drop(self) -> None:
        """Drop what has come; raises as `recv` if the connection has ended."""
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        while poller.poll(0):
            self._read_open(time.monotonic() + _SEND_SECONDS)
            self._messages.clear()
        self._messages.clear()

    def close(self) -> None:
        """Say that the connection ends and end it: ComfyUI collects garbage after a run and answers only then."""
        with suppress(OSError, InvalidState):
            self._protocol.send_close()
            self._flush()
        self._connection.close()

    def _shake_hands(self, deadline: float) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is State.CONNECTING:
            self._read(deadline)
            if self._protocol.handshake_exc:
                raise self._protocol.handshake_exc

    def _read_open(self, deadline: float) -> None:
        """Take what the server sends next; raises if that ends the connection before another message."""
        self._read(deadline)
        if not self._messages and self._protocol.state is not State.OPEN:
            raise ConnectionClosedError(self._protocol.close_rcvd, self._protocol.close_sent)

    def _read(self, deadline: float) -> None:
        """Take what the server sends next."""
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(left_seconds)
        data = self._connection.recv(_READ_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            self._take(event)
        self._flush()

    def _take(self, event: Frame | Response | object) -> None:
        """Put the frames of a message together."""
        if not isinstance(event, Frame):
            return
        if event.opcode is Opcode.PONG:
            self._pongs += 1
        if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        self._parts.append(event)
        if event.fin:
            data = b"".join(part.data for part in self._parts)
            is_text = self._parts[0].opcode is Opcode.TEXT
            self._messages.append(data.decode("utf-8", "replace") if is_text else data)
            self._parts.clear()

    def _flush(self) -> None:
        """Send what the protocol has to say: the handshake, pongs, the answer to a close."""
        self._connection.settimeout(_SEND_SECONDS)
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._connection.sendall(data)
        except TimeoutError as error:  # a half of it may be sent, so this is no message that did not come
            raise ConnectionError("the server takes nothing") from error

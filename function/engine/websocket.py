"""A WebSocket that is read by whoever waits for its messages: it has no thread, and nothing is queued in between."""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import suppress

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

_READ_BYTES = 65_536
_MESSAGE = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


class WebSocket:
    """One connection of a client; `websockets` speaks the protocol, only the bytes are moved here.

    Pings of the other side are answered while messages are read; none are sent but by `ping`. It connects directly,
    whatever proxy the environment names. Every method raises OSError or WebSocketException when the connection is lost.

    Args:
        url: `ws://host:port/path`.
        timeout_seconds: By when it has to be open.
        max_bytes: Of one message; a larger one ends the connection.

    Raises:
        OSError: It can't be opened in time.
        WebSocketException: What answers is no WebSocket.
    """

    def __init__(self, url: str, *, timeout_seconds: float, max_bytes: int) -> None:
        self._messages: deque[str | bytes] = deque()
        self._fragments: list[bytes] = []
        self._is_text = False
        self._pong = b""
        self._pings = 0
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri, max_size=max_bytes)
        deadline = time.monotonic() + timeout_seconds
        self._socket = socket.create_connection((uri.host, uri.port), timeout_seconds)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands(deadline)
        except BaseException:
            self._socket.close()
            raise

    def send(self, text: str) -> None:
        """Send a message."""
        self._protocol.send_text(text.encode())
        self._flush()

    def receive(self, timeout_seconds: float) -> str | bytes:
        """The next message.

        Raises:
            TimeoutError: None came in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._messages:
            self._read(deadline)
        return self._messages.popleft()

    def drop(self, timeout_seconds: float) -> None:
        """Drop what has come so far.

        Raises:
            TimeoutError: It does not end.
        """
        deadline = time.monotonic() + timeout_seconds
        with suppress(BlockingIOError):
            while True:
                self._messages.clear()
                self._read(deadline, waiting=False)

    def ping(self, timeout_seconds: float) -> None:
        """Wait until the other side has answered; messages that come before that are dropped.

        Raises:
            TimeoutError: It does not answer in time.
        """
        deadline = time.monotonic() + timeout_seconds
        self._pings += 1
        awaited = str(self._pings).encode()
        self._protocol.send_ping(awaited)
        self._flush()
        while self._pong != awaited:
            self._read(deadline)
        self._messages.clear()

    def close(self) -> None:
        """Say goodbye and end the connection; the answer is not waited for."""
        with suppress(OSError), self._socket:
            self._socket.settimeout(0.0)
            if self._protocol.state is State.OPEN:
                self._protocol.send_close()
                self._flush()

    def _shake_hands(self, deadline: float) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read(deadline)
        if self._protocol.handshake_exc:
            raise self._protocol.handshake_exc

    def _read(self, deadline: float, *, waiting: bool = True) -> None:
        """Take what comes next, or raise what `socket.recv` raises."""
        self._check_open()
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError("nothing came in time")
        self._socket.settimeout(left_seconds if waiting else 0.0)
        if data := self._socket.recv(_READ_BYTES):
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._take(event)
        self._flush()
        if not self._messages:
            self._check_open()

    def _check_open(self) -> None:
        if self._protocol.state in {State.CLOSING, State.CLOSED}:
            raise ConnectionResetError("the connection was closed")

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pong = bytes(frame.data)
        elif frame.opcode in _MESSAGE:
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                message = b"".join(self._fragments)
                self._fragments.clear()
                self._messages.append(message.decode("utf-8", "replace") if self._is_text else message)

    def _flush(self) -> None:
        """Send what the protocol has to say; an empty piece is the end, which `close` sees to."""
        if data := b"".join(self._protocol.data_to_send()):
            self._socket.sendall(data)

"""A TCP proxy in front of an engine that answers chosen requests in its own way: what networks and broken engines do.

A fault is a function of the client's connection, called once the head of a request has been read; it ends that.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Fault = Callable[[socket.socket], object]

MIB = 1024**2
_CHUNK_BYTES = 65_536


class EngineProxy:
    """A proxy on a free port of loopback.

    Args:
        port: The engine's.

    Attributes:
        faults: By the beginning of a request line, for example `GET /history`; `once` makes one that happens once.
        seen: The request lines that came in.
    """

    def __init__(self, port: int) -> None:
        self.target_port = port
        self.faults: dict[str, Fault] = {}
        self.seen: list[str] = []
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def once(self, start: str, fault: Fault) -> None:
        """Let this happen to the next request whose line begins so."""

        def only_now(connection: socket.socket) -> None:
            self.faults.pop(start, None)
            fault(connection)

        self.faults[start] = only_now

    def cut(self) -> None:
        """End every connection."""
        for connection in tuple(self._open):
            shut(connection)

    def close(self) -> None:
        """Take no more connections and end those that are open."""
        self.closing.set()
        shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            with connection, suppress(OSError):
                head = connection.recv(_CHUNK_BYTES)
                fault = self._fault(head)
                if fault is None:
                    fault = self._forward(connection, head)
                if fault:
                    fault(connection)
        finally:
            self._open.discard(connection)

    def _fault(self, data: bytes) -> Fault | None:
        """The fault of a request that begins here; None where none does."""
        line = data.split(b"\r\n", 1)[0]
        if not line.endswith(b" HTTP/1.1"):
            return None
        self.seen.append(line.decode())
        return next((fault for start, fault in self.faults.items() if self.seen[-1].startswith(start)), None)

    def _forward(self, connection: socket.socket, data: bytes) -> Fault | None:
        """Carry bytes both ways until the connection ends, or a later request on it has a fault, which is returned."""
        fault = None

        def carry_back() -> None:
            _copy(engine, connection)
            if not fault:
                shut(connection)

        with socket.create_connection(("127.0.0.1", self.target_port)) as engine:
            self._open.add(engine)
            back = threading.Thread(target=carry_back, daemon=True)
            back.start()
            with suppress(OSError):
                while data and not fault:
                    engine.sendall(data)
                    data = connection.recv(_CHUNK_BYTES)
                    fault = self._fault(data)
            shut(engine)
            back.join()
            self._open.discard(engine)
        return fault


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)


def shut(connection: socket.socket) -> None:
    """End a connection in both directions, if it hasn't ended."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(port: int) -> Iterator[EngineProxy]:
    """A proxy until the block ends."""
    proxy = EngineProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()


def answer(content: bytes, *, status: str = "200 OK") -> Fault:
    """Answer with these bytes, whatever the engine would say."""
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + content)


def say(content: bytes) -> Fault:
    """Send these bytes, HTTP or not, and end the connection."""
    return lambda connection: connection.sendall(content)


def trickle(connection: socket.socket) -> None:
    """Send a header that never ends, a byte at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def hang(connection: socket.socket) -> None:
    """Say nothing until the client goes away."""
    connection.recv(1)


def flood(*, announced: bool) -> Fault:
    """Send a JSON text of 600 MB, with or without its length."""
    size = 600 * MIB
    length = f"Content-Length: {size}\r\n".encode() if announced else b""

    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length + b'\r\n{"a": "')
        for _ in range(size // MIB):
            connection.sendall(b"x" * MIB)

    return send

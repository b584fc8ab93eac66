"""An HTTP proxy in front of a store that spoils chosen answers, so that transfers meet what networks do."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CHUNK_BYTES = 16_384
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding"}
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one answer.

    Attributes:
        kind: `cut` (the connection ends), `reset` (it ends with a TCP reset), `stall` (nothing more comes until the
            proxy closes), `flip` (one bit of the body is another), `slow-down` (503 in place of the answer), or
            `before` (`action` is called, then the request goes through).
        after_bytes: How much of the body comes first.
        action: For `before`.
    """

    kind: str
    after_bytes: int = 0
    action: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """A GET with a range that came in; `end` is the first byte behind it."""

    start: int
    end: int


class FaultyProxy:
    """A proxy on a free port of 127.0.0.1.

    Args:
        target: URL of the server behind it.
        faults: What happens to the first answers to GETs with a range; None: nothing.
        default: What happens to all others.

    Attributes:
        ranges: Every GET with a range, in the order they came.
        peak: How many of them were answered at the same time.
    """

    def __init__(self, target: str, *, faults: Iterable[Fault | None] = (), default: Fault | None = None) -> None:
        self.ranges: list[RangeRequest] = []
        self.peak = 0
        self.target = target.removeprefix("http://").rstrip("/")
        self.closing = threading.Event()
        self._faults = deque(faults)
        self._default = default
        self._lock = threading.Lock()
        self._answering = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = False
        self._server.faulty = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection and wait for the threads."""
        self.closing.set()
        self._server.shutdown()
        for connection in tuple(self.open):
            _shut(connection)
        self._thread.join()
        self._server.server_close()

    def spoil(self, faults: Iterable[Fault | None]) -> None:
        """What happens to the next answers to GETs with a range."""
        with self._lock:
            self._faults.extend(faults)

    @contextmanager
    def answering(self) -> Iterator[Callable[[], None]]:
        """Count an answer while it is written; it ends before its last bytes go out, or the next one could overtake it.

        Yields:
            Ends the count; the end of the block does so at the latest.
        """
        with self._lock:
            self._answering += 1
            self.peak = max(self.peak, self._answering)
        with ExitStack() as stack:
            stack.callback(self._end_answer)
            yield stack.close

    def _end_answer(self) -> None:
        with self._lock:
            self._answering -= 1

    def next_fault(self, header: str) -> Fault | None:
        """Note a GET and say what happens to it."""
        with self._lock:
            first, last = map(int, re.findall(r"\d+", header))
            self.ranges.append(RangeRequest(first, last + 1))
            return self._faults.popleft() if self._faults else self._default


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: ThreadingHTTPServer

    def setup(self) -> None:
        self.faulty: FaultyProxy = self.server.faulty  # type: ignore[attr-defined]
        self.faulty.open.add(self.request)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.faulty.open.discard(self.request)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Nobody reads it."""

    def do_GET(self) -> None:
        header = self.headers.get("Range")
        fault = self.faulty.next_fault(header) if header else None
        with self.faulty.answering() as end_count:
            if fault and fault.action:
                fault.action()
            if fault and fault.kind == "slow-down":
                self._slow_down()
            else:
                self._forward(fault, end_count)

    def do_HEAD(self) -> None:
        self._forward(None, lambda: None)

    def _slow_down(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", str(len(_SLOW_DOWN)))
        self.end_headers()
        self.wfile.write(_SLOW_DOWN)

    def _forward(self, fault: Fault | None, end_count: Callable[[], None]) -> None:
        upstream = http.client.HTTPConnection(self.faulty.target, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            answer = upstream.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_HEADERS:
                    self.send_header(name, value)
            self.end_headers()
            self._pass_on(answer, fault, end_count)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client went away
        finally:
            upstream.close()

    def _pass_on(self, answer: http.client.HTTPResponse, fault: Fault | None, end_count: Callable[[], None]) -> None:
        unsent = answer.length
        spoiled = fault is not None and fault.kind != "before"
        left = fault.after_bytes if fault and spoiled else None
        while data := answer.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left or _CHUNK_BYTES)):
            if fault and left == 0:
                if fault.kind != "flip":
                    return self._break(fault)
                data, left = bytes([data[0] ^ 1]) + data[1:], None
            elif left is not None:
                left -= len(data)
            unsent = (unsent or 0) - len(data)
            if unsent <= 0:
                end_count()
            self.wfile.write(data)
        return None

    def _break(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.kind == "stall":
            self.faulty.closing.wait()
        elif fault.kind == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()
        else:
            _shut(self.request)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is already

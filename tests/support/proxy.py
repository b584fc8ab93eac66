"""An HTTP proxy that balances over servers, and lets tests count, spoil or time what goes through it."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Hook = Callable[["Seen"], str]

CUT = "cut"
"""What a hook returns to have the connection closed without an answer."""

REFUSED = "refused"
"""What a hook returns to have 503 answered in place of the server."""

CONFLICT = "conflict"
"""What a hook returns to have 409 ConditionalRequestConflict answered in place of the server's answer."""

_CHUNK_BYTES = 65_536
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "expect"}
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_CONFLICT = b"<?xml version='1.0'?><Error><Code>ConditionalRequestConflict</Code><Message>Again.</Message></Error>"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came in.

    Attributes:
        method: Of HTTP.
        path: Decoded, without the query.
        query: As it came.
    """

    method: str
    path: str
    query: str


def let_pass(_seen: Seen) -> str:
    """A hook that does nothing."""
    return ""


class HttpProxy:
    """A proxy on a free port of 127.0.0.1: each request goes to the next server, however long its answer takes.

    Args:
        targets: URLs of the servers; one that does not answer makes the proxy answer 502.
        before: Asked before a request goes on; CUT and REFUSED keep it from the server.
        after: Asked when the server has answered; CUT loses the answer, CONFLICT takes its place.

    Attributes:
        seen: Every request, in the order they came.
        targets: May be changed at any time.
    """

    def __init__(self, targets: Sequence[str], *, before: Hook = let_pass, after: Hook = let_pass) -> None:
        self.targets = list(targets)
        self.before = before
        self.after = after
        self.seen: list[Seen] = []
        self.open: set[socket.socket] = set()
        self._turns = itertools.count()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.request_queue_size = 256
        self._server.daemon_threads = False
        self._server.proxy = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection and wait for the threads."""
        self._server.shutdown()
        for connection in tuple(self.open):
            _shut(connection)
        self._thread.join()
        self._server.server_close()

    def next_target(self) -> str:
        """Whose turn it is."""
        return self.targets[next(self._turns) % len(self.targets)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ThreadingHTTPServer

    def setup(self) -> None:
        self.proxy: HttpProxy = self.server.proxy  # type: ignore[attr-defined]
        self.proxy.open.add(self.request)
        super().setup()

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()
        self.proxy.open.discard(self.request)

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Nobody reads it."""

    def forward(self) -> None:
        url = urlsplit(self.path)
        seen = Seen(self.command, unquote(url.path), url.query)
        body = self._read_body()
        self.proxy.seen.append(seen)
        verdict = self.proxy.before(seen)
        if verdict == CUT:
            self._cut()
        elif verdict == REFUSED:
            self._answer(503, _SLOW_DOWN)
        else:
            self._pass_on(seen, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = forward  # noqa: N815  (names that the base class looks for)

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _pass_on(self, seen: Seen, body: bytes) -> None:
        far = urlsplit(self.proxy.next_target())
        upstream = http.client.HTTPConnection(far.hostname or "", far.port, timeout=120)
        try:
            upstream.connect()
            upstream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.proxy.open.add(upstream.sock)
            self._send(upstream, body)
            answer = upstream.getresponse()
        except (OSError, http.client.HTTPException):
            self._answer(502, b"")
        else:
            self._answer_with(answer, self.proxy.after(seen))
            answer.close()
        finally:
            self.proxy.open.discard(upstream.sock)
            upstream.close()

    def _answer_with(self, answer: http.client.HTTPResponse, verdict: str) -> None:
        if verdict == CUT:
            self._cut()
        elif verdict == CONFLICT:
            self._answer(409, _CONFLICT)
        else:
            self._return(answer)

    def _send(self, upstream: http.client.HTTPConnection, body: bytes) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {*_HOP_HEADERS, "content-length"}:
                upstream.putheader(name, value)
        if body or self.command in {"POST", "PUT"}:
            upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body)

    def _return(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_HEADERS:
                self.send_header(name, value)
        bodiless = self.command == "HEAD" or answer.status in {204, 304}
        if answer.length is None and not bodiless:  # a stream: it ends with the connection
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        while not bodiless and (data := answer.read1(_CHUNK_BYTES)):
            self.wfile.write(data)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut(self) -> None:
        self.close_connection = True
        _shut(self.request)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is already
        connection.shutdown(socket.SHUT_RDWR)

"""A real https or http server on 127.0.0.1 whose answers a test decides."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from function.sources import parse_allow_list
from function.storage.https import FetchRules, HttpsOrigin

if TYPE_CHECKING:
    from collections.abc import Callable

CERTIFICATE = Path(__file__).parents[1] / "data/tls/server.pem"
"""Key and self-signed certificate, good until 2126, of the names below example and of this machine."""

make_tls = partial(ssl.create_default_context, cafile=str(CERTIFICATE))


def make_server_tls() -> ssl.SSLContext:
    """What a server needs to be one of the certificate's names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@dataclass(frozen=True, slots=True)
class Request:
    """One request that came in; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class ServedFile:
    """One path of the server.

    Attributes:
        content: Its bytes.
        headers: What identifies it.
        ranges: Whether `Range` is heeded.
        head_status: What HEAD is answered with.
        status: What GET is answered with.
        surplus: Sent after the body, and counted in its length.
        cut_bytes: How many bytes of a body are held back before the connection is closed.
        content_range: Sent in place of the true one.
        tells_length: Whether the answer says how long it is.
        hold: Set when the body may be sent; None: at once.
    """

    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"v1"'})
    ranges: bool = True
    head_status: int = 200
    status: int = 200
    surplus: bytes = b""
    cut_bytes: int = 0
    content_range: str = ""
    tells_length: bool = True
    hold: threading.Event | None = None


class HttpsServer:
    """Serves files and redirects by path, and remembers what it was asked.

    Args:
        scheme: `https` or `http`.

    Attributes:
        files: By path.
        redirects: Location by path.
        requests: What came in.
    """

    def __init__(self, scheme: str = "https") -> None:
        self.scheme = scheme
        self.files: dict[str, ServedFile] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[Request] = []
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.port = self._server.server_address[1]
        if scheme == "https":
            self._server.socket = make_server_tls().wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for every answer."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, path: str, host: str = "models.example") -> str:
        """The URL of a path by one of the certificate's names."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    def origin(self, *allow: str, host: str = "models.example", **rules: Any) -> HttpsOrigin:
        """An origin that finds every host on this machine and, unless told otherwise, may read all of this server."""
        allowed = parse_allow_list(",".join(allow or (f"*:{self.port}",)))
        settings = {"allow": allowed, "allow_private": True, "resolve": on_this_machine, "make_tls": make_tls}
        return HttpsOrigin(self.url("", host), rules=FetchRules(**{**settings, **rules}))


def on_this_machine(_host: str, _port: int) -> list[str]:
    """Every name is this machine."""
    return ["127.0.0.1"]


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, or doesn't like the certificate, is part of some tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, served: HttpsServer, *arguments: Any) -> None:
        self._served = served
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer(lambda file: self._start(file.head_status, file, len(file.content)))

    def do_GET(self) -> None:
        """Answer with the file or a part of it."""
        self._answer(self._send)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, send: Callable[[ServedFile], None]) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._served.requests.append(Request(self.command, self.path, headers))
        path = self.path.partition("?")[0]
        if path in self._served.redirects:
            self._redirect(self._served.redirects[path])
        elif path in self._served.files:
            send(self._served.files[path])
        else:
            self._start(404, ServedFile(headers={}), 0)

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, file: ServedFile) -> None:
        wanted = self.headers.get("Range")
        content, status, extra = file.content, file.status, {}
        if wanted and file.ranges and status == 200:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            content, status = content[first : last + 1], 206
            span = f"bytes {first}-{first + len(content) - 1}/{len(file.content)}"
            extra = {"Content-Range": file.content_range or span}
        content += file.surplus
        self._start(status, file, len(content), **extra)
        if file.hold:
            self.wfile.write(content[:1])
            file.hold.wait(60)
        self.wfile.write(content[bool(file.hold) : len(content) - file.cut_bytes])
        self.close_connection = True

    def _start(self, status: int, file: ServedFile, length: int, **extra: str) -> None:
        self.send_response(status)
        if file.tells_length:
            extra["Content-Length"] = str(length)
        for name, value in {**file.headers, **extra}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

"""HTTP connections to other people's servers, guarded at the address.

The name is resolved once, every address it has is checked, and the connection goes to one that was. It is spoken in
`http.client`: urllib3 would write URLs, and with them the secrets in their queries, into its log lines. Proxies of the
environment are not used: a proxy would resolve the names again, unguarded.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Protocol

from function.errors import StorageUnavailableError
from function.sources import DEFAULT_PORTS
from function.storage.guard import Resolver, checked_addresses, resolve_name
from function.storage.objects import TransientStorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.sources import SourceUrl


class Watch(Protocol):
    """Who may end connections: a server that sends a byte now and then is never silent for too long."""

    def check(self) -> None:
        """Raise if there are to be no more of them."""
        ...

    def add(self, connected: socket.socket) -> None:
        """Note a connection, before its first byte: from now on it may be `cut`."""
        ...


class _Nobody:
    def check(self) -> None:
        """Go on."""

    def add(self, connected: socket.socket) -> None:
        """Leave it alone."""


def cut(connected: socket.socket) -> None:
    """End a connection under whoever uses it; they see its end, or an error."""
    with suppress(OSError):  # it is over already
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # TLS's own takes the socket from who reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRules:
    """Whom to connect to, and how.

    Attributes:
        allow_private: Whether a host may have a private address.
        plain_http: Whether http may be spoken with other machines, and not with this one alone.
        resolve: Looks host names up.
        make_tls: Makes the settings of TLS, called once for each connector.
        connect_seconds: How long one connection may take.
        read_seconds: How long a server may be silent.
        watch: Told of each connection; asked before each whether there is to be one.
    """

    allow_private: bool = False
    plain_http: bool = False
    resolve: Resolver = resolve_name
    make_tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    watch: Watch = field(default_factory=_Nobody)


class Connector:
    """Makes connections by one set of rules.

    Args:
        rules: Whom to connect to, and how.
    """

    def __init__(self, rules: ConnectionRules) -> None:
        self._rules = rules
        self._tls: ssl.SSLContext | None = None

    def connect(self, url: SourceUrl) -> HTTPConnection:
        """A connection to the host of an http or https URL; the caller closes it.

        Raises:
            InputRefusedError: The host has an address that must not be reached.
            StorageUnavailableError: It can't be reached, or its certificate is not valid.
            As `Watch.check`.
        """
        rules = self._rules
        addresses = checked_addresses(
            url, resolve=rules.resolve, allow_private=rules.allow_private, plain_http=rules.plain_http
        )
        failure: OSError | None = None
        for address in addresses:
            rules.watch.check()
            connection = _PinnedConnection(url, address, self._tls_of(url), rules)
            try:
                connection.connect()
            except ssl.SSLCertVerificationError as error:
                raise StorageUnavailableError(f"{url.origin}: its certificate is not valid for us") from error
            except OSError as error:
                failure = error
            else:
                return connection
        raise TransientStorageError(f"{url.origin}: no connection ({type(failure).__name__})") from failure

    def _tls_of(self, url: SourceUrl) -> ssl.SSLContext | None:
        if url.scheme != "https":
            return None
        if self._tls is None:
            self._tls = self._rules.make_tls()
        return self._tls


class _PinnedConnection(HTTPConnection):
    """A connection to an address that was checked, where it speaks and expects the name of the host."""

    def __init__(self, url: SourceUrl, address: str, tls: ssl.SSLContext | None, rules: ConnectionRules) -> None:
        self.default_port = DEFAULT_PORTS[url.scheme]
        super().__init__(url.host, url.port)
        self._address = address
        self._tls = tls
        self._rules = rules

    def connect(self) -> None:
        """Connect, once: the name is never resolved again."""
        connected = socket.create_connection((self._address, self.port), self._rules.connect_seconds)
        with ExitStack() as undo:
            undo.callback(connected.close)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = _over_tls(connected, self._tls, self.host) if self._tls else connected
            undo.callback(self.sock.close)
            self._rules.watch.add(self.sock)
            if isinstance(self.sock, ssl.SSLSocket):
                self.sock.do_handshake()
            self.sock.settimeout(self._rules.read_seconds)
            undo.pop_all()


def _over_tls(connected: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """The socket that takes over; the handshake comes later, as the server may draw it out."""
    return tls.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)

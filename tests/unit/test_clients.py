"""Clients that wait for an answer: whether they are still there."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from function.clients import ClientWatch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def watch() -> Iterator[ClientWatch]:
    """A watch that runs."""
    made = ClientWatch()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's and the client's side of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server, client:
        yield server, client


def test_a_closed_connection_is_noticed(watch: ClientWatch, connection: tuple[socket.socket, socket.socket]) -> None:
    """The callback comes while the context is open."""
    server, client = connection
    gone = threading.Event()
    with watch.watching(server, gone.set):
        client.close()
        assert gone.wait(10)


def test_a_connection_closed_before_the_watch_is_noticed(
    watch: ClientWatch, connection: tuple[socket.socket, socket.socket]
) -> None:
    """An end-of-file that came with the request counts."""
    server, client = connection
    client.close()
    gone = threading.Event()
    with watch.watching(server, gone.set):
        assert gone.wait(10)


def test_a_reset_connection_is_noticed_whatever_is_unread(
    watch: ClientWatch, connection: tuple[socket.socket, socket.socket]
) -> None:
    """Nobody can read an answer after a reset."""
    server, client = connection
    client.sendall(b"GET")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone = threading.Event()
    with watch.watching(server, gone.set):
        client.close()
        assert gone.wait(10)


def test_a_client_that_sent_more_counts_as_present_and_its_bytes_stay(
    watch: ClientWatch, connection: tuple[socket.socket, socket.socket]
) -> None:
    """The next request of a pipelining client is neither taken for its end nor read, even when it has closed."""
    server, client = connection
    gone = threading.Event()
    with watch.watching(server, gone.set):
        client.sendall(b"GET /health")
        client.close()
        assert not gone.wait(0.1)
    assert server.recv(100) == b"GET /health"


def test_nothing_is_told_after_the_context_has_closed(
    watch: ClientWatch, connection: tuple[socket.socket, socket.socket]
) -> None:
    """A connection may be watched again, for its next request; only that one's callback is called."""
    server, client = connection
    first, second = threading.Event(), threading.Event()
    with watch.watching(server, first.set):
        pass
    with watch.watching(server, second.set):
        client.close()
        assert second.wait(10)
    assert not first.is_set()


def test_without_a_connection_nothing_is_watched(watch: ClientWatch) -> None:
    """A server that doesn't tell its connections gets its jobs run all the same."""
    with watch.watching(None, lambda: pytest.fail("called")):
        pass


def test_a_watch_may_stop_while_a_connection_is_watched(connection: tuple[socket.socket, socket.socket]) -> None:
    """A shutdown that a job outlasts is no error."""
    watch = ClientWatch()
    watch.start()
    with watch.watching(connection[0], lambda: pytest.fail("called")):
        watch.stop()

"""The engine's socket against servers that speak well, badly and not at all."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.server import serve

from function.engine.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from websockets.sync.server import ServerConnection

MAX_BYTES = 100_000
PATIENCE_SECONDS = 20.0


@contextmanager
def opened(talk: Callable[[ServerConnection], object]) -> Iterator[WebSocket]:
    """A connection to a server that does something with it."""
    with serve(talk, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with closing(connected(server.socket.getsockname()[1])) as client:
                yield client
        finally:
            server.shutdown()
            thread.join()


def connected(port: int, *, seconds: float = PATIENCE_SECONDS) -> WebSocket:
    """A connection to a port."""
    return WebSocket(f"ws://127.0.0.1:{port}/ws?clientId=a", timeout_seconds=seconds, max_bytes=MAX_BYTES)


@contextmanager
def raw(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a server that does what it likes with its one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            with server.accept()[0] as connection, suppress(OSError):
                connection.recv(65_536)
                answer(connection)

        thread = threading.Thread(target=work)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_messages_arrive_as_they_were_sent() -> None:
    """Text and bytes, in pieces too, an empty one, and what is no UTF-8 readable all the same."""

    def talk(connection: ServerConnection) -> None:
        connection.send("eins")
        connection.send(["z", "w", "ei"])
        connection.send([b"\x00", b"\xff"])
        connection.send("")
        connection.send(b"a\xffb", text=True)
        connection.recv()

    with opened(talk) as client:
        found = [client.receive(PATIENCE_SECONDS) for _ in range(5)]
        client.send("enough")
    assert found == ["eins", "zwei", b"\x00\xff", "", "a\ufffdb"]


def test_several_messages_of_one_read_come_one_by_one() -> None:
    """They wait in the order they came."""

    def talk(connection: ServerConnection) -> None:
        with connection.protocol_mutex:
            for number in range(5):
                connection.protocol.send_text(str(number).encode())
            connection.socket.sendall(b"".join(connection.protocol.data_to_send()))
        connection.recv()

    with opened(talk) as client:
        assert [client.receive(PATIENCE_SECONDS) for _ in range(5)] == list("01234")
        with pytest.raises(TimeoutError):
            client.receive(0.01)
        client.send("enough")


def test_pings_are_answered_and_sent() -> None:
    """Those of the server while a message is awaited; ours wait for its answer and drop what came before that."""
    answered: list[bool] = []

    def talk(connection: ServerConnection) -> None:
        answered.append(connection.ping().wait(PATIENCE_SECONDS))
        for number in range(1000):
            connection.send(str(number))
        connection.recv()
        connection.send("after")
        connection.recv()

    with opened(talk) as client:
        assert client.receive(PATIENCE_SECONDS) == "0"
        client.drop(PATIENCE_SECONDS)
        client.ping(PATIENCE_SECONDS)
        client.send("ping")
        while (message := client.receive(PATIENCE_SECONDS)) != "after":
            assert int(message) < 1000  # sent after the answer to the ping
        client.send("enough")
    assert answered == [True]


def test_a_closed_connection_is_lost() -> None:
    """What came before is read; then every method says so."""
    with opened(lambda connection: connection.send("last")) as client:
        assert client.receive(PATIENCE_SECONDS) == "last"
        for use in (client.receive, client.drop, client.ping):
            with pytest.raises((OSError, WebSocketException), match=r"closed|reset|Broken pipe") as caught:
                use(PATIENCE_SECONDS)
            assert not isinstance(caught.value, TimeoutError)


def test_a_message_that_is_too_large_ends_the_connection() -> None:
    """Also one that is announced small and comes in pieces."""

    def talk(connection: ServerConnection) -> None:
        connection.send(["x" * (MAX_BYTES // 2)] * 3)

    with opened(talk) as client, pytest.raises(ConnectionResetError):
        client.receive(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 100_000, b""]
)
def test_what_is_no_websocket_is_refused(answer: bytes) -> None:
    """At once, whatever it is."""
    with (
        raw(lambda connection: connection.sendall(answer)) as port,
        pytest.raises((OSError, WebSocketException)) as caught,
    ):
        connected(port)
    assert not isinstance(caught.value, TimeoutError)


def test_one_byte_after_the_other_ends_with_the_time() -> None:
    """A handshake that never ends is given up."""

    def trickle(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"H")
            time.sleep(0.01)

    with raw(trickle) as port, pytest.raises(TimeoutError):
        connected(port, seconds=0.3)


def test_messages_without_end_are_no_answer_to_a_ping() -> None:
    """It is given up in time."""
    done = threading.Event()

    def flood(connection: ServerConnection) -> None:
        with suppress(Exception):
            while not done.is_set():
                connection.send("x" * 1000)

    with opened(flood) as client:
        client._protocol.send_ping = lambda _data: None  # type: ignore[method-assign]  # it never arrives
        with pytest.raises(TimeoutError):
            client.ping(0.3)
        done.set()

"""Whether the clients that wait for an answer are still there.

A client that closes its connection sends an end-of-file, and so does one that only says that it will send no more but
goes on reading (a half-closed connection): the two can't be told apart before something is written. HTTP clients don't
half-close, so an end-of-file after a whole request counts as gone. What a client may have sent beyond its request stays
unread, and as long as there is any the client counts as present.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from socket import socket

_INT = struct.Struct("i")


class ClientWatch:
    """Watches the connections of clients in one thread, from `start` to `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._stop_event = os.eventfd(0)
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._thread = threading.Thread(target=self._watch, name="client-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._epoll.register(self._stop_event, select.EPOLLIN)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        os.eventfd_write(self._stop_event, 1)
        self._thread.join()
        with self._lock:
            self._epoll.close()
            os.close(self._stop_event)

    @contextmanager
    def watching(self, connection: socket | None, on_gone: Callable[[], None]) -> Iterator[None]:
        """Watch a connection whose request has been read, until the context closes.

        Args:
            connection: It is not read from; None: there is nothing to watch.
            on_gone: Called once, in the watching thread, when the client has gone; it must be quick.
        """
        if connection is None:
            yield
            return
        number = connection.fileno()
        with self._lock:
            self._watched[number] = on_gone
            # Reported once: the end-of-file stays, and would be reported again and again.
            self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
        try:
            yield
        finally:
            with self._lock:
                del self._watched[number]
                if not self._epoll.closed:
                    self._epoll.unregister(number)

    def _watch(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                if number == self._stop_event:
                    return
                self._look_at(number)

    def _look_at(self, number: int) -> None:
        # The number may be another connection's by now, so what epoll has said of it counts for nothing.
        with self._lock:
            on_gone = self._watched.get(number)
            if on_gone and _is_gone(number):
                on_gone()


def _is_gone(number: int) -> bool:
    """Whether the other side of a connection has closed it and left nothing unread."""
    poll = select.poll()
    poll.register(number, select.POLLRDHUP)
    events = sum(flags for _, flags in poll.poll(0))
    if events & (select.POLLHUP | select.POLLERR):
        return True
    return bool(events) and not _unread_bytes(number)


def _unread_bytes(number: int) -> int:
    (count,) = _INT.unpack(fcntl.ioctl(number, termios.FIONREAD, _INT.pack(0)))
    return int(count)

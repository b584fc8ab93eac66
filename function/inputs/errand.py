"""How much and how long: what the files of one job together may take, counted by the threads that bring them."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from function.errors import DeadlineExceededError, InputRefusedError, InputUnavailableError
from function.setting_values import MIB
from function.storage.connecting import cut

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

FILES_WORTH = 4
"""All input files of a job together may be as large as this many of the largest."""


class Errand:
    """Bringing the files of one job; watches the connections to other people's servers (`connecting.Watch`).

    Args:
        max_bytes: Largest file; 0: unlimited.
        deadline: When to give up, on the clock.
        clock: Monotonic seconds.
    """

    def __init__(self, *, max_bytes: int, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._deadline = deadline
        self._clock = clock
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._total_bytes = 0
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def stop(self) -> None:
        """Nobody wants the files any more: whoever brings one ends, also who waits for a server."""
        self._stopped.set()
        with self._lock:
            connections = tuple(self._connections)
        for connected in connections:
            cut(connected)

    def add(self, connected: socket.socket) -> None:
        """Cut this connection when the files are not wanted any more."""
        with self._lock:
            self._connections.add(connected)
        if self._stopped.is_set():
            cut(connected)

    def check(self) -> None:
        """Raise if the files are not to be brought any more.

        Raises:
            DeadlineExceededError: The job's deadline has passed.
            InputUnavailableError: Nobody waits for them.
        """
        if self._clock() >= self._deadline:
            raise DeadlineExceededError("the input files did not arrive before the job's deadline")
        if self._stopped.is_set():
            raise InputUnavailableError("the job ended before its input files had arrived")

    def pause(self, seconds: float) -> None:
        """Wait before something is tried again."""
        self._stopped.wait(min(seconds, max(0.0, self._deadline - self._clock())))
        self.check()

    def count(self, more_bytes: int) -> None:
        """Count bytes of any file; negative ones are given back.

        Raises:
            InputRefusedError: The job's files are too large together.
        """
        with self._lock:
            self._total_bytes += more_bytes
            total = self._total_bytes
        limit = FILES_WORTH * self.max_bytes
        if 0 < limit < total:
            raise InputRefusedError(
                f"the job's input files are larger than {limit // MIB} MiB together ({FILES_WORTH} x MAX_INPUT_SIZE_MB)"
            )
        self.check()


class Arrival:
    """One file that arrives.

    Args:
        errand: What it is part of.
    """

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self._bytes = 0

    def expect(self, size_bytes: int) -> None:
        """Refuse a file before its first byte.

        Raises:
            InputRefusedError: It is too large.
        """
        limit = self.errand.max_bytes
        if 0 < limit < size_bytes:
            raise InputRefusedError(f"the file is larger than {limit / MIB:g} MiB (MAX_INPUT_SIZE_MB)")

    def add(self, more_bytes: int) -> None:
        """Count bytes that came.

        Raises:
            As `expect` and `Errand.count`.
        """
        self._bytes += more_bytes
        self.expect(self._bytes)
        self.errand.count(more_bytes)

    def restart(self) -> None:
        """Begin anew."""
        self.errand.count(-self._bytes)
        self._bytes = 0

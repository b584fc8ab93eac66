"""Which jobs this pod takes, and whose turn on the GPU it is.

Knative's containerConcurrency is no mutual exclusion: after a timeout of its proxy the slot is free while our thread
still runs. So the GPU is given to one job at a time here, in the order of admission.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING

from function.errors import DrainingError, QueueFullError, RetryableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Admission:
    """Admits up to `limit` jobs and hands them the GPU one after the other.

    Args:
        limit: Jobs that may wait or run; one more is refused at once.
        clock: Monotonic seconds, the clock of the deadlines.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._changed = Condition()
        self._admitted = 0
        self._waiting: deque[object] = deque()
        self._running = False
        self._draining = False

    @property
    def depth(self) -> int:
        """Jobs waiting or running."""
        return self._admitted

    @property
    def draining(self) -> bool:
        """Whether the pod is shutting down."""
        return self._draining

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count one job; meant to be entered before its body is read, so that bodies can't take every thread.

        Raises:
            QueueFullError: `limit` jobs are admitted.
            DrainingError: The pod is shutting down.
        """
        with self._changed:
            self._refuse_when_draining()
            if self._admitted >= self._limit:
                raise QueueFullError(f"{self._limit} jobs are waiting or running in this pod (ADMIT_LIMIT)")
            self._admitted += 1
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= 1
                self._changed.notify_all()

    @contextmanager
    def turn(self, *, deadline: float, on_position: Callable[[int], None]) -> Iterator[None]:
        """Wait for the GPU, first come first served, and hold it.

        Args:
            deadline: Monotonic seconds.
            on_position: Called with the number of jobs before this one when it changes.

        Raises:
            DrainingError: The pod is shutting down; raised at once.
            RetryableError: The deadline passed while the job waited.
        """
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._wait_for_turn(ticket, deadline, on_position)
                self._running = True
            finally:
                self._waiting.remove(ticket)
        try:
            yield
        finally:
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _wait_for_turn(self, ticket: object, deadline: float, on_position: Callable[[int], None]) -> None:
        while True:
            self._refuse_when_draining()
            before = self._waiting.index(ticket)
            if before == 0 and not self._running:
                return
            on_position(before + self._running)
            remaining = deadline - self._clock()
            if remaining <= 0:
                raise RetryableError("the job's deadline passed while it waited for the GPU")
            self._changed.wait(remaining)

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise DrainingError("this pod is shutting down; another one takes the job", retry_after_seconds=1)

    def drain(self) -> None:
        """Refuse new jobs from now on and send those away that wait."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def wait_until_idle(self, timeout_seconds: float) -> bool:
        """Wait until no job is admitted; say whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._admitted == 0, timeout_seconds)

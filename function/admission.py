"""Which jobs this pod takes, and whose turn on the GPU it is.

Knative's containerConcurrency is no mutual exclusion: after a timeout of its proxy the slot is free while our thread
still runs. So the GPU is given to one job at a time here: interactive jobs before the others, each in the order of
their arrival.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING

from function.errors import DrainingError, QueueFullError, RetryableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.cancellation import Cancellation
    from function.telemetry import OnProgress

MAX_STREAMS = 16
"""Streams of events at a time; each holds a thread of the server, as each admitted job does."""

PATIENCE_SECONDS = 60.0
"""A job that has waited longer than this counts as interactive, so that no stream of those can hold it up for ever."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One job's turn on the GPU.

    Attributes:
        deadline: Monotonic seconds by which the engine must be done.
        cancellation: Ends the job with its reason until the engine is done.
        on_progress: Observer of the job's stages.
        on_executed: Called when nothing of the job is needed from the engine any more: the next job may have the GPU.
    """

    deadline: float
    cancellation: Cancellation
    on_progress: OnProgress
    on_executed: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A job that waits or runs; two are never equal."""

    interactive: bool
    since: float

    def rank(self, now: float) -> tuple[bool, float]:
        """The lowest one is next."""
        return not self.interactive and now - self.since < PATIENCE_SECONDS, self.since


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
        self._waiting: list[_Ticket] = []
        self._holder: _Ticket | None = None
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
    def turn(
        self,
        *,
        deadline: float,
        on_position: Callable[[int], None],
        cancellation: Cancellation,
        interactive: bool = False,
    ) -> Iterator[None]:
        """Wait for the GPU and hold it.

        Args:
            deadline: Monotonic seconds.
            on_position: Called with the number of jobs before this one when it changes.
            cancellation: Ends the wait; whoever sets it calls `look_again`. It does not end the turn.
            interactive: Whether this job goes before those that are not; see PATIENCE_SECONDS.

        Raises:
            DrainingError: The pod is shutting down; raised at once.
            RetryableError: The deadline passed while the job waited.
            ComfyfnError: The reason of the cancellation.
        """
        ticket = _Ticket(interactive, self._clock())
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._give_turn()
                self._await_turn(ticket, deadline, on_position, cancellation)
            except BaseException:
                self._leave(ticket)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._leave(ticket)

    def _await_turn(
        self, ticket: _Ticket, deadline: float, on_position: Callable[[int], None], cancellation: Cancellation
    ) -> None:
        told = 0
        while True:
            self._refuse_when_draining()
            cancellation.check()
            if self._holder is ticket:
                return
            before = self._line().index(ticket) + 1
            if before != told:
                on_position(before)
                told = before
            remaining = deadline - self._clock()
            if remaining <= 0:
                raise RetryableError("the job's deadline passed while it waited for the GPU")
            self._changed.wait(remaining)

    def _line(self) -> list[_Ticket]:
        """Who waits, the next one first."""
        now = self._clock()
        return sorted(self._waiting, key=lambda ticket: ticket.rank(now))

    def _give_turn(self) -> None:
        """Give the GPU to the next one if it is free: decided in one place, because ranks change with time."""
        if self._holder is None and self._waiting:
            self._holder = self._line()[0]
            self._waiting.remove(self._holder)
        self._changed.notify_all()

    def _leave(self, ticket: _Ticket) -> None:
        if self._holder is ticket:
            self._holder = None
        else:
            self._waiting.remove(ticket)
        self._give_turn()

    def look_again(self) -> None:
        """Have every waiting job look at its cancellation."""
        with self._changed:
            self._changed.notify_all()

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

"""Which jobs this pod takes, and whose turn on the GPU it is.

Knative's containerConcurrency is no mutual exclusion: after a timeout of its proxy the slot is free while our thread
still runs. So the GPU is given to one job at a time here: interactive jobs before the others, each in the order of
their arrival.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Lock
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


class _Ticket:
    """A job that waits or runs.

    Args:
        interactive: Whether it goes before those that are not.
        since: When it came.
        on_position: Told of the number of jobs before this one.
        lock: Of the admission.

    Attributes:
        called: Notified when its wait may be over: a condition of its own, so that no change wakes those that it does
            not concern.
    """

    def __init__(self, *, interactive: bool, since: float, on_position: Callable[[int], None], lock: Lock) -> None:
        self.called = Condition(lock)
        self._interactive = interactive
        self._since = since
        self._on_position = on_position
        self._told = 0

    def rank(self, now: float) -> tuple[bool, float]:
        """The lowest one is next."""
        return not self._interactive and now - self._since < PATIENCE_SECONDS, self._since

    def tell(self, before: int) -> None:
        """Tell of the number of jobs before this one, if that is news."""
        if before != self._told:
            self._told = before
            self._on_position(before)


class Admission:
    """Admits up to `limit` jobs and hands them the GPU one after the other.

    Args:
        limit: Jobs that may wait or run; one more is refused at once.
        on_full: Called for each that is refused.
        clock: Monotonic seconds, the clock of the deadlines.
    """

    def __init__(
        self, limit: int, *, on_full: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._on_full = on_full
        self._clock = clock
        self._lock = Lock()
        self._left = Condition(self._lock)
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
        with self._lock:
            self.refuse_when_draining()
            if self._admitted >= self._limit:
                self._on_full()
                raise QueueFullError(f"{self._limit} jobs are waiting or running in this pod (ADMIT_LIMIT)")
            self._admitted += 1
        try:
            yield
        finally:
            with self._lock:
                self._admitted -= 1
                self._left.notify_all()

    @contextmanager
    def turn(
        self,
        *,
        deadline: float,
        on_position: Callable[[int], None],
        cancellation: Cancellation,
        interactive: bool = False,
        since: float | None = None,
    ) -> Iterator[None]:
        """Wait for the GPU and hold it.

        Args:
            deadline: Monotonic seconds.
            since: When the job came, which is its place in the queue; None: now.
            on_position: Called with the number of jobs before this one when it changes, in the thread that changes it;
                it must be quick.
            cancellation: Ends the wait; whoever sets it calls `look_again`. It does not end the turn.
            interactive: Whether this job goes before those that are not; see PATIENCE_SECONDS.

        Raises:
            DrainingError: The pod is shutting down; raised at once.
            RetryableError: The deadline passed while the job waited.
            ComfyfnError: The reason of the cancellation.
        """
        since = self._clock() if since is None else since
        ticket = _Ticket(interactive=interactive, since=since, on_position=on_position, lock=self._lock)
        with self._lock:
            self._waiting.append(ticket)
            try:
                self._move_up()
                self._await_turn(ticket, deadline, cancellation)
            except BaseException:
                self._leave(ticket)
                raise
        try:
            yield
        finally:
            with self._lock:
                self._leave(ticket)

    def _await_turn(self, ticket: _Ticket, deadline: float, cancellation: Cancellation) -> None:
        while True:
            self.refuse_when_draining()
            cancellation.check()
            if self._holder is ticket:
                return
            remaining = deadline - self._clock()
            if remaining <= 0:
                raise RetryableError("the job's deadline passed while it waited for the GPU")
            ticket.called.wait(remaining)

    def _line(self) -> list[_Ticket]:
        """Who waits, the next one first."""
        now = self._clock()
        return sorted(self._waiting, key=lambda ticket: ticket.rank(now))

    def _move_up(self) -> None:
        """Give the GPU to the next one if it is free: decided in one place, because ranks change with time."""
        line = self._line()
        if line and self._holder is None:
            self._holder = line.pop(0)
            self._waiting.remove(self._holder)
            self._holder.called.notify()
        for before, ticket in enumerate(line, start=1):
            ticket.tell(before)

    def _leave(self, ticket: _Ticket) -> None:
        if self._holder is ticket:
            self._holder = None
        else:
            self._waiting.remove(ticket)
        self._move_up()

    def look_again(self) -> None:
        """Have every waiting job look at its cancellation."""
        with self._lock:
            self._call_all()

    def _call_all(self) -> None:
        for ticket in self._waiting:
            ticket.called.notify()

    def refuse_when_draining(self) -> None:
        """Raise DrainingError if the pod is shutting down."""
        if self._draining:
            raise DrainingError("this pod is shutting down; another one takes the job", retry_after_seconds=1)

    def drain(self) -> None:
        """Refuse new jobs from now on and send those away that wait."""
        with self._lock:
            self._draining = True
            self._call_all()

    def wait_until_idle(self, timeout_seconds: float) -> bool:
        """Wait until no job is admitted; say whether that came true in time."""
        with self._left:
            return self._left.wait_for(lambda: self._admitted == 0, timeout_seconds)

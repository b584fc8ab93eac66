"""Whether a job is still wanted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.errors import ComfyfnError


class Cancellation:
    """Set by any thread, looked at by the job's own; once set it stays.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reason: ComfyfnError | None = None
        self._expiry: tuple[float, ComfyfnError] | None = None

    def now(self) -> float:
        """Seconds by the clock that `expire` goes by."""
        return self._clock()

    @property
    def reason(self) -> ComfyfnError | None:
        """Why the job is not wanted any more; None while it is."""
        if self._expiry and self._clock() >= self._expiry[0]:
            self.cancel(self._expiry[1])
        return self._reason

    def cancel(self, reason: ComfyfnError) -> None:
        """End the job with this error as soon as it can be ended; the first reason counts."""
        self._reason = self._reason or reason

    def expire(self, at: float, reason: ComfyfnError) -> None:
        """End the job with this error at a time of the clock, unless a later call has moved it by then."""
        if not self.reason:
            self._expiry = at, reason

    def check(self) -> None:
        """Raise the reason if there is one."""
        if reason := self.reason:
            raise reason

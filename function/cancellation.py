"""Whether a job is still wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from function.errors import ComfyfnError


class Cancellation:
    """Set by any thread, looked at by the job's own; once set it stays."""

    def __init__(self) -> None:
        self._reason: ComfyfnError | None = None

    @property
    def reason(self) -> ComfyfnError | None:
        """Why the job is not wanted any more; None while it is."""
        return self._reason

    def cancel(self, reason: ComfyfnError) -> None:
        """End the job with this error as soon as it can be ended; the first reason counts."""
        self._reason = self._reason or reason

    def check(self) -> None:
        """Raise the reason if there is one."""
        if self._reason:
            raise self._reason

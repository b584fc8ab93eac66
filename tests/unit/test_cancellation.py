from __future__ import annotations

import pytest

from function.cancellation import Cancellation
from function.errors import ClientGoneError, JobCancelledError


class Clock:
    """Seconds that a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.seconds


def test_the_first_reason_counts() -> None:
    """A job that was cancelled stays cancelled, whatever comes later."""
    cancellation = Cancellation()
    cancellation.check()
    first = JobCancelledError("cancelled")
    cancellation.cancel(first)
    cancellation.cancel(ClientGoneError("gone"))
    assert cancellation.reason is first
    with pytest.raises(JobCancelledError):
        cancellation.check()


def test_an_expiry_that_is_moved_in_time_does_not_come() -> None:
    """What was moved counts from then on."""
    clock = Clock()
    cancellation = Cancellation(clock=clock)
    late = ClientGoneError("late")
    cancellation.expire(10, ClientGoneError("early"))
    clock.seconds = 9.9
    cancellation.expire(20, late)
    clock.seconds = 19.9
    assert cancellation.reason is None
    clock.seconds = 20
    assert cancellation.reason is late


def test_an_expiry_can_not_be_moved_once_it_has_come() -> None:
    """Who may have lost something must not take it up again."""
    clock = Clock()
    cancellation = Cancellation(clock=clock)
    lost = ClientGoneError("lost")
    cancellation.expire(10, lost)
    clock.seconds = 10
    cancellation.expire(30, ClientGoneError("other"))
    clock.seconds = 11
    assert cancellation.reason is lost

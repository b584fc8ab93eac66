"""Admission: how many jobs, and whose turn it is."""

from __future__ import annotations

import threading
import time

import pytest

from function.admission import Admission
from function.errors import DrainingError, QueueFullError, RetryableError
from tests.support.processes import wait_until


def in_turn(admission: Admission, order: list[int], number: int) -> threading.Thread:
    """A job that takes its turn and notes it."""

    def run() -> None:
        with admission.turn(deadline=time.monotonic() + 10, on_position=lambda _before: None):
            order.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_one_job_more_than_the_limit_is_refused() -> None:
    """A place is free again when a job ends."""
    admission = Admission(2)
    with admission.admitted():
        with admission.admitted(), pytest.raises(QueueFullError), admission.admitted():
            pass
        with admission.admitted():
            assert admission.depth == 2
    assert admission.depth == 0


def test_turns_come_in_the_order_of_arrival() -> None:
    """Nobody overtakes."""
    admission = Admission(10)
    order: list[int] = []
    with admission.turn(deadline=time.monotonic() + 10, on_position=lambda _before: None):
        threads = []
        for number in range(5):
            threads.append(in_turn(admission, order, number))
            wait_until(lambda count=number + 1: len(admission._waiting) == count, what="the thread in the queue")
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_waiting_job_learns_its_position() -> None:
    """The running job counts as one before it."""
    admission = Admission(10)
    positions: list[int] = []
    with (
        admission.turn(deadline=time.monotonic() + 10, on_position=positions.append),
        pytest.raises(RetryableError, match="deadline passed while it waited"),
        admission.turn(deadline=time.monotonic(), on_position=positions.append),
    ):
        pass
    assert positions == [1]


def test_a_job_whose_deadline_passes_while_it_waits_leaves_the_queue() -> None:
    """The next one is not held up by it."""
    admission = Admission(10)
    with (
        admission.turn(deadline=time.monotonic() + 10, on_position=lambda _before: None),
        pytest.raises(RetryableError),
        admission.turn(deadline=time.monotonic(), on_position=lambda _before: None),
    ):
        pass
    with admission.turn(deadline=time.monotonic(), on_position=lambda _before: None):
        pass


def test_draining_sends_waiting_jobs_away_and_lets_the_running_one_be() -> None:
    """Who waits is told at once; new jobs are refused."""
    admission = Admission(10)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            with admission.turn(deadline=time.monotonic() + 60, on_position=lambda _before: None):
                pass
        except DrainingError as error:
            errors.append(error)

    with admission.admitted(), admission.turn(deadline=time.monotonic() + 1, on_position=lambda _before: None):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: len(admission._waiting) == 1, what="the thread in the queue")
        admission.drain()
        thread.join()
        assert len(errors) == 1
        assert not admission.wait_until_idle(0.0)
        with pytest.raises(DrainingError), admission.admitted():
            pass
    assert admission.wait_until_idle(0.0)

"""Admission: how many jobs, and whose turn it is."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from function.admission import PATIENCE_SECONDS, Admission
from function.cancellation import Cancellation
from function.errors import ClientGoneError, ComfyfnError, DrainingError, QueueFullError, RetryableError
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


def turn(
    admission: Admission, *, seconds: float = 10.0, on_position: Callable[[int], None] = lambda _before: None
) -> AbstractContextManager[None]:
    """A turn of a job that nobody cancels."""
    deadline = time.monotonic() + seconds
    return admission.turn(deadline=deadline, on_position=on_position, cancellation=Cancellation())


class Queue:
    """Jobs that wait in threads while another job has the GPU, until the first context closes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admission = Admission(10, clock=lambda: self.now)
        self.order: list[str] = []
        self.errors: dict[str, ComfyfnError] = {}
        self.positions: dict[str, list[int]] = {}
        self._threads: list[threading.Thread] = []

    def join(
        self,
        name: str,
        *,
        interactive: bool = False,
        cancellation: Cancellation | None = None,
        since: float | None = None,
    ) -> None:
        """Start a job and wait until it is in the queue."""
        self.positions[name] = []
        waiting = len(self.admission._waiting)
        arguments = {"interactive": interactive, "cancellation": cancellation or Cancellation(), "since": since}
        thread = threading.Thread(target=self._run, args=(name,), kwargs=arguments)
        self._threads.append(thread)
        thread.start()
        wait_until(lambda: len(self.admission._waiting) == waiting + 1, what=f"{name} in the queue")

    def _run(self, name: str, **arguments: Any) -> None:
        try:
            with self.admission.turn(deadline=1000.0, on_position=self.positions[name].append, **arguments):
                self.order.append(name)
        except ComfyfnError as error:
            self.errors[name] = error

    def wait(self) -> None:
        """Wait until all jobs have ended."""
        for thread in self._threads:
            thread.join()


@pytest.fixture
def queue() -> Iterator[Queue]:
    """A queue behind a job that runs until the test's end or until `running.close()`."""
    made = Queue()
    yield made
    made.wait()


@pytest.fixture
def running(queue: Queue) -> Iterator[ExitStack]:
    """The running job; closing it lets the others run."""
    with ExitStack() as stack:
        stack.enter_context(
            queue.admission.turn(deadline=1000.0, on_position=lambda _before: None, cancellation=Cancellation())
        )
        yield stack


def test_one_job_more_than_the_limit_is_refused() -> None:
    """A place is free again when a job ends."""
    admission = Admission(2)
    with admission.admitted():
        with admission.admitted(), pytest.raises(QueueFullError), admission.admitted():
            pass
        with admission.admitted():
            assert admission.depth == 2
    assert admission.depth == 0


def test_turns_come_in_the_order_of_arrival(queue: Queue, running: ExitStack) -> None:
    """Nobody of the same kind overtakes."""
    for number in range(5):
        queue.now += 1
        queue.join(str(number))
    running.close()
    queue.wait()
    assert queue.order == ["0", "1", "2", "3", "4"]


def test_a_job_has_the_place_of_its_coming(queue: Queue, running: ExitStack) -> None:
    """Whenever it was ready to wait for the GPU."""
    queue.now = 5.0
    queue.join("later")
    queue.join("earlier", since=3.0)
    running.close()
    queue.wait()
    assert queue.order == ["earlier", "later"]


def test_interactive_jobs_go_before_the_others(queue: Queue, running: ExitStack) -> None:
    """Each kind keeps its own order."""
    for name in ("event 1", "prompt 1", "event 2", "prompt 2"):
        queue.now += 1
        queue.join(name, interactive=name.startswith("prompt"))
    running.close()
    queue.wait()
    assert queue.order == ["prompt 1", "prompt 2", "event 1", "event 2"]


def test_a_job_that_has_waited_long_counts_as_interactive(queue: Queue, running: ExitStack) -> None:
    """It goes before interactive jobs that came later, and after those that came earlier."""
    queue.join("prompt 1", interactive=True)
    queue.now = 1.0
    queue.join("event 1")
    queue.now = PATIENCE_SECONDS
    queue.join("prompt 2", interactive=True)
    queue.join("event 2")
    queue.now += 1.0
    running.close()
    queue.wait()
    assert queue.order == ["prompt 1", "event 1", "prompt 2", "event 2"]


def test_waiting_jobs_learn_their_positions(queue: Queue, running: ExitStack) -> None:
    """The running job counts as one before them; an interactive job that comes moves the others back."""
    queue.join("event 1")
    queue.join("event 2")
    queue.join("prompt", interactive=True)
    expected = {"event 1": [1, 2], "event 2": [2, 3], "prompt": [1]}
    wait_until(lambda: queue.positions == expected, what="the new positions")
    running.close()


def test_a_cancelled_job_leaves_the_queue_at_once(queue: Queue, running: ExitStack) -> None:
    """It ends with the reason, without a turn, while the running job goes on; the next one moves up."""
    cancellation = Cancellation()
    queue.join("gone", cancellation=cancellation)
    queue.join("next")
    cancellation.cancel(ClientGoneError("gone"))
    queue.admission.look_again()
    wait_until(lambda: "gone" in queue.errors, what="the end of the wait")
    wait_until(lambda: queue.positions["next"] == [2, 1], what="the next one's new position")
    assert not queue.order
    running.close()
    queue.wait()
    assert queue.order == ["next"]


def test_a_cancelled_job_gets_no_turn_even_when_the_gpu_is_free() -> None:
    """What was cancelled before its turn does not run."""
    cancellation = Cancellation()
    cancellation.cancel(ClientGoneError("gone"))
    admission = Admission(1)
    with (
        pytest.raises(ClientGoneError),
        admission.turn(deadline=time.monotonic() + 10, on_position=lambda _before: None, cancellation=cancellation),
    ):
        pytest.fail("it runs")
    with turn(admission):
        pass


def test_a_job_whose_deadline_passes_while_it_waits_leaves_the_queue() -> None:
    """The next one is not held up by it."""
    admission = Admission(10)
    positions: list[int] = []
    with (
        turn(admission),
        pytest.raises(RetryableError, match="deadline passed while it waited"),
        turn(admission, seconds=0.0, on_position=positions.append),
    ):
        pass
    assert positions == [1]
    with turn(admission):
        pass


def test_draining_sends_waiting_jobs_away_and_lets_the_running_one_be(queue: Queue, running: ExitStack) -> None:
    """Who waits is told at once; new jobs are refused; idle is who has nobody admitted."""
    with queue.admission.admitted():
        queue.join("waiting")
        queue.admission.drain()
        queue.wait()
        assert isinstance(queue.errors["waiting"], DrainingError)
        assert not queue.admission.wait_until_idle(0.0)
        with pytest.raises(DrainingError), queue.admission.admitted():
            pass
    assert queue.admission.wait_until_idle(0.0)
    running.close()

"""The warm-up: once for each process of the engine."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from function.engine.command import EngineCommand
from function.engine.supervisor import Supervisor
from function.errors import NodeFailedError, StorageUnavailableError
from function.warmup import WarmUp
from tests.support import replay
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Runs:
    """A warm-up that fails as told and counts its runs."""

    def __init__(self, *errors: Exception) -> None:
        self.count = 0
        self._errors = list(errors)

    def __call__(self) -> None:
        """One run."""
        self.count += 1
        if self._errors:
            raise self._errors.pop(0)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """An engine that is starting."""
    made = Supervisor(EngineCommand(argv=(sys.executable, replay.__file__), cwd=tmp_path))
    made.start()
    yield made
    made.stop()


def followed(supervisor: Supervisor, runs: Runs) -> WarmUp:
    """A warm-up that has seen the engine get ready."""
    warm_up = WarmUp(runs, retry_seconds=0.01)
    warm_up.start(supervisor)
    supervisor.wait_ready(time.monotonic() + 20)
    return warm_up


def test_each_process_of_the_engine_is_warmed_up_once(supervisor: Supervisor) -> None:
    """A new process is cold again."""
    runs = Runs()
    warm_up = followed(supervisor, runs)
    wait_until(lambda: runs.count == 1 and not warm_up.problem, what="the warm-up")
    supervisor.restart("why not")
    supervisor.wait_ready(time.monotonic() + 20)
    wait_until(lambda: runs.count == 2 and not warm_up.problem, what="the second warm-up")
    warm_up.stop()


def test_what_may_succeed_later_is_tried_again(supervisor: Supervisor) -> None:
    """Storage that comes back lets the function get ready."""
    runs = Runs(StorageUnavailableError("away"), StorageUnavailableError("away"))
    warm_up = followed(supervisor, runs)
    wait_until(lambda: runs.count == 3 and not warm_up.problem, what="the third try")
    warm_up.stop()


def test_a_failure_for_good_stays_the_problem(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and not tried again in the same process."""
    runs = Runs(NodeFailedError("node 1 failed"))
    warm_up = followed(supervisor, runs)
    wait_until(lambda: "failed" in warm_up.problem, what="the failure")
    assert warm_up.problem == "the warm-up failed: node 1 failed"
    assert warm_up.problem in caplog.messages
    supervisor.restart("why not")
    supervisor.wait_ready(time.monotonic() + 20)
    wait_until(lambda: not warm_up.problem, what="the next process")
    assert runs.count == 2
    warm_up.stop()


def test_a_mistake_of_ours_is_logged_and_the_next_process_is_warmed_up(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """With its trace; the thread goes on."""
    runs = Runs(TimeoutError("who waits for what?"))
    warm_up = followed(supervisor, runs)
    wait_until(lambda: "failed" in warm_up.problem, what="the failure")
    assert warm_up.problem == "the warm-up failed: TimeoutError: who waits for what?"
    assert [record.exc_info is not None for record in caplog.records if record.message == warm_up.problem] == [True]
    supervisor.restart("why not")
    wait_until(lambda: runs.count == 2 and not warm_up.problem, what="the next process")
    warm_up.stop()


def test_a_warm_up_that_is_stopped_runs_no_more(supervisor: Supervisor) -> None:
    """Its thread ends."""
    runs = Runs()
    warm_up = followed(supervisor, runs)
    wait_until(lambda: runs.count == 1, what="the warm-up")
    warm_up.stop()
    warm_up._thread.join(10)
    assert not warm_up._thread.is_alive()

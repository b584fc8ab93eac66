"""The engine as the pipeline uses it: real processes that play recorded runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.cancellation import Cancellation
from function.engine.client import EngineClient
from function.engine.command import EngineCommand
from function.engine.engine import Engine
from function.engine.supervisor import Supervisor
from function.errors import (
    DeadlineExceededError,
    DrainingError,
    EngineUnavailableError,
    NodeFailedError,
    OutOfMemoryError,
)
from function.telemetry import Metrics, Progress
from tests.support import replay
from tests.support.processes import wait_until
from tests.support.replay import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKFLOW = Recording.of_run("simple_fresh").workflow


def soon() -> float:
    """A deadline that only a hanging test reaches."""
    return time.monotonic() + 20


def quick_client(host: str, port: int) -> EngineClient:
    """A client that soon takes a run for stuck."""
    return EngineClient(host, port, interrupt_seconds=0.2)


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of their own."""
    return Metrics()


@pytest.fixture
def start(tmp_path: Path, metrics: Metrics) -> Iterator[Callable[..., Engine]]:
    """Started engines, stopped afterwards."""
    started: list[tuple[Engine, Supervisor]] = []

    def make(*flags: str, memory_limit_bytes: int = 0) -> Engine:
        command = EngineCommand(argv=(sys.executable, replay.__file__, *flags), cwd=tmp_path)
        supervisor = Supervisor(command, backoff_seconds=(0.01, 0.1))
        supervisor.start()
        engine = Engine(supervisor, metrics=metrics, memory_limit_bytes=memory_limit_bytes, connect=quick_client)
        started.append((engine, supervisor))
        return engine

    yield make
    for engine, supervisor in started:
        engine.close()
        supervisor.stop()


def test_run_waits_for_the_boot(start: Callable[..., Engine], metrics: Metrics) -> None:
    """A run asked for while the engine boots waits and succeeds, and is counted."""
    engine = start()
    assert len(engine.run(WORKFLOW, deadline=soon()).files) == 1
    assert metrics.registry.get_sample_value("comfyfn_engine_starts_total") == 1
    assert metrics.registry.get_sample_value("comfyfn_engine_ready") == 1
    assert metrics.registry.get_sample_value("comfyfn_engine_run_seconds_count") == 1


def test_engine_killed_in_mid_run(start: Callable[..., Engine], tmp_path: Path) -> None:
    """A run whose engine is killed ends as retryable, and the next run succeeds in a new process."""
    pid_file = tmp_path / "held"
    engine = start("--hold-once", str(pid_file))

    def kill(progress: Progress) -> None:
        if progress.detail:  # the run has begun and is held
            os.kill(int(pid_file.read_text()), signal.SIGKILL)

    with pytest.raises(EngineUnavailableError):
        engine.run(WORKFLOW, deadline=soon(), on_progress=kill)
    assert engine.run(WORKFLOW, deadline=soon()).files


def test_engine_killed_between_runs(start: Callable[..., Engine]) -> None:
    """A run that finds the engine just killed waits for its successor, because nothing was submitted yet."""
    engine = start()
    os.kill(engine._supervisor.wait_ready(soon()).pid, signal.SIGKILL)
    assert engine.run(WORKFLOW, deadline=soon()).files


def test_engine_killed_between_two_runs(start: Callable[..., Engine], metrics: Metrics) -> None:
    """A connection that was kept to an engine that is gone breaks no run: its successor gets one of its own."""
    engine = start()
    assert engine.run(WORKFLOW, deadline=soon()).files
    pid = engine._supervisor.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the engine, threads and all")
    assert engine.run(WORKFLOW, deadline=soon()).files
    assert metrics.registry.get_sample_value("comfyfn_engine_starts_total") == 2


def test_stuck_engine_is_replaced(start: Callable[..., Engine], tmp_path: Path, metrics: Metrics) -> None:
    """A node that can't be interrupted costs the engine its process at the deadline; the next run succeeds."""
    engine = start("--deaf", "--hold-once", str(tmp_path / "held"))
    engine._supervisor.wait_ready(soon())
    with pytest.raises(DeadlineExceededError):
        engine.run(WORKFLOW, deadline=time.monotonic() + 0.3)
    assert engine.run(WORKFLOW, deadline=soon()).files
    assert metrics.registry.get_sample_value("comfyfn_engine_starts_total") == 2


def test_cancelled_run(start: Callable[..., Engine], tmp_path: Path) -> None:
    """A run that is cancelled while it executes ends with the reason, and the next run succeeds."""
    engine = start("--hold-once", str(tmp_path / "held"))
    cancellation = Cancellation()
    reason = DrainingError("shutting down")
    with pytest.raises(DrainingError):
        engine.run(
            WORKFLOW, deadline=soon(), cancellation=cancellation, on_progress=lambda _: cancellation.cancel(reason)
        )
    assert engine.run(WORKFLOW, deadline=soon()).files


def test_run_cancelled_before_it_began(start: Callable[..., Engine], metrics: Metrics) -> None:
    """The engine never hears of it."""
    cancellation = Cancellation()
    cancellation.cancel(DrainingError("shutting down"))
    with pytest.raises(DrainingError):
        start().run(WORKFLOW, deadline=soon(), cancellation=cancellation)
    assert metrics.registry.get_sample_value("comfyfn_engine_run_seconds_count") == 0


def test_a_run_that_waits_for_the_boot_is_cancelled(tmp_path: Path, metrics: Metrics) -> None:
    """At once, not when the engine at last answers."""
    command = EngineCommand(argv=(sys.executable, "-c", "import time; time.sleep(60)"), cwd=tmp_path)
    supervisor, cancellation = Supervisor(command), Cancellation()
    supervisor.start()
    threading.Timer(0.2, cancellation.cancel, [DrainingError("the pod is shutting down")]).start()
    deadline = time.monotonic() + 40
    try:
        with pytest.raises(DrainingError):
            Engine(supervisor, metrics=metrics).run(WORKFLOW, deadline=deadline, cancellation=cancellation)
    finally:
        supervisor.stop()
    assert time.monotonic() < deadline


def test_out_of_memory_is_tried_once_more(start: Callable[..., Engine], metrics: Metrics) -> None:
    """A run out of memory is repeated once in a freed engine, then it is an error."""
    engine = start("--out-of-memory", "2")
    with pytest.raises(OutOfMemoryError):
        engine.run(WORKFLOW, deadline=soon())
    assert metrics.registry.get_sample_value("comfyfn_engine_run_seconds_count") == 2


def test_second_try_after_out_of_memory_may_succeed(start: Callable[..., Engine]) -> None:
    """A run that fits into freed memory succeeds."""
    assert start("--out-of-memory", "1").run(WORKFLOW, deadline=soon()).files


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported asynchronously",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_an_engine_whose_cuda_context_is_broken_is_replaced(
    start: Callable[..., Engine], tmp_path: Path, metrics: Metrics, text: str
) -> None:
    """The run may be tried again, because another one may have broken it, and the next run succeeds."""
    (tmp_path / "broken").write_text(text)
    engine = start("--fail-once", str(tmp_path / "broken"))
    with pytest.raises(EngineUnavailableError, match="has to be replaced"):
        engine.run(WORKFLOW, deadline=soon())
    assert engine.run(WORKFLOW, deadline=soon()).files
    assert metrics.registry.get_sample_value("comfyfn_engine_starts_total") == 2


def test_an_error_of_a_node_leaves_the_engine_be(
    start: Callable[..., Engine], tmp_path: Path, metrics: Metrics
) -> None:
    """A CUDA error that is no sticky one is the workflow's."""
    (tmp_path / "broken").write_text("CUDA error: invalid configuration argument")
    engine = start("--fail-once", str(tmp_path / "broken"))
    with pytest.raises(NodeFailedError):
        engine.run(WORKFLOW, deadline=soon())
    assert metrics.registry.get_sample_value("comfyfn_engine_starts_total") == 1


@pytest.mark.parametrize(("limit_mb", "starts"), [(0, 1), (1000, 1), (100, 2)])
def test_an_engine_that_has_grown_over_its_limit_is_replaced_between_jobs(
    start: Callable[..., Engine], metrics: Metrics, limit_mb: int, starts: int
) -> None:
    """What its children hold counts; 0 is no limit."""
    engine = start("--with-child", "--memory-mb", "200", memory_limit_bytes=limit_mb * 1024**2)
    assert engine.run(WORKFLOW, deadline=soon()).files
    engine.recycle()
    assert engine.run(WORKFLOW, deadline=soon()).files
    assert metrics.registry.get_sample_value("comfyfn_engine_starts_total") == starts


def test_no_engine_before_the_deadline(tmp_path: Path, metrics: Metrics) -> None:
    """A run whose engine never answers ends at its deadline as retryable."""
    command = EngineCommand(argv=(sys.executable, "-c", "import time; time.sleep(60)"), cwd=tmp_path)
    supervisor = Supervisor(command)
    supervisor.start()
    with pytest.raises(EngineUnavailableError, match="not ready"):
        Engine(supervisor, metrics=metrics).run(WORKFLOW, deadline=time.monotonic() + 0.05)
    supervisor.stop()
    assert not supervisor.alive

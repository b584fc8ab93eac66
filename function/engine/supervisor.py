"""The engine's process: started, watched, restarted, and never left behind.

Imports little, because it is started first: the engine boots while the rest of the function is being imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from function.engine.process import (
    HOST,
    Output,
    answers,
    await_end,
    describe_status,
    free_port,
    group_memory_bytes,
    has_ended,
    require_free_port,
    spawn,
)
from function.errors import EngineNotReadyError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from function.engine.command import EngineCommand

_log = logging.getLogger("comfyfn.engine")

START_BUDGET = 5
"""Starts in a row without an answer after which the engine counts as not alive; the pauses take about 6 s by then."""

_FAILED_STARTS_TO_GIVE_UP = 3
_POLL_SECONDS = 0.02  # between two probes of an engine that is not ready yet
_WANTED_SECONDS = 0.1  # between two looks whether somebody still waits for the engine


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine's process at one moment.

    Attributes:
        generation: How many processes were started so far; a run that sees it change has lost its engine.
        alive: The process runs, boots, or will soon be started again; False when too many starts in a row led to
            nothing, until one does.
        ready: It answers.
        pid: Of the process, 0 when there is none.
        port: Where it listens on loopback, 0 when there is none.
        error: Why there is no engine, in one line; "" while all is well.
    """

    generation: int = 0
    alive: bool = False
    ready: bool = False
    pid: int = 0
    port: int = 0
    error: str = ""


class Supervisor:
    """Keeps one engine process running from `start` to `stop`.

    A process that ends is started again, the first time after `backoff_seconds[0]`, then after twice as long each
    time up to `backoff_seconds[1]`; one that was ready for `stable_seconds` counts as good and resets that.

    Args:
        command: What to run.
        start_budget: After so many starts in a row that never got ready the engine counts as not alive; it is still
            started again and again, at the longest pause. None: it counts as alive all the same.
        backoff_seconds: Shortest and longest pause before the next start.
        boot_seconds: A process that has not answered by then is killed and counts as a start that led to nothing.
        stable_seconds: How long it must have been ready for its end not to count as a failure.
        grace_seconds: Time between SIGTERM and SIGKILL in `stop`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        command: EngineCommand,
        *,
        start_budget: int | None = START_BUDGET,
        boot_seconds: float = 900.0,
        backoff_seconds: tuple[float, float] = (0.2, 10.0),
        stable_seconds: float = 30.0,
        grace_seconds: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._start_budget = start_budget
        self._boot_seconds = boot_seconds
        self._backoff_seconds = backoff_seconds
        self._stable_seconds = stable_seconds
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._state = EngineState()
        self._observers: list[Callable[[EngineState], None]] = []
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._restart_reason = ""
        self._failures = 0
        self._failed_starts = 0
        self._ready_since = 0.0
        self._job_id = ""

    @property
    def state(self) -> EngineState:
        """All facts about the process, taken at one moment."""
        return self._state

    @property
    def alive(self) -> bool:
        """Whether there is a process or will soon be one; see `EngineState.alive`."""
        return self._state.alive

    @property
    def ready(self) -> bool:
        """Whether the process runs and has answered."""
        return self._state.ready

    @property
    def generation(self) -> int:
        """How many processes were started so far."""
        return self._state.generation

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        return self._state.pid

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the engine; port 0 when there is none."""
        return HOST, self._state.port

    @property
    def last_error(self) -> str:
        """Why there is no engine, in one line; "" while all is well."""
        return self._state.error

    def start(self) -> None:
        """Begin to keep the engine running; returns at once. A second call changes nothing."""
        if self._thread is None:
            self._update(alive=True)
            # The kernel takes the end of the thread that started a process for the end of its parent, so one thread
            # starts them all and lives as long as they do.
            self._thread = threading.Thread(target=self._keep_running, name="engine-supervisor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the engine and everything it started: SIGTERM, and SIGKILL after the grace; returns when it is gone."""
        if self._thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._signal_group(signal.SIGTERM)
            self._changed.wait_for(lambda: not self._state.pid, timeout=self._grace_seconds)
            self._signal_group(signal.SIGKILL)
        self._thread.join()

    def restart(self, reason: str) -> None:
        """Replace the process by a new one; returns at once, and `wait_ready` then waits for the new one.

        It gets SIGKILL: whoever asks has an engine that no longer does what it is told.
        """
        with self._changed:
            if self._state.pid:
                self._restart_reason = reason
                self._set(ready=False, error=reason)
                self._signal_group(signal.SIGKILL)

    def recycle_above(self, limit_bytes: int) -> None:
        """Replace the process if it and its children hold more memory than this; meant to be called between jobs."""
        pid = self._state.pid
        held_bytes = group_memory_bytes(pid) if pid and self._state.ready else 0
        if held_bytes > limit_bytes:
            gib = 1024**3
            reason = f"the engine holds {held_bytes / gib:.1f} GiB, more than {limit_bytes / gib:.1f} GiB"
            _log.warning("%s (ENGINE_MEMORY_LIMIT_GB); it is replaced", reason)
            self.restart(reason)

    @contextlib.contextmanager
    def working_for(self, job_id: str) -> Iterator[None]:
        """Mark what the engine writes meanwhile with the job that it works for."""
        self._job_id = job_id
        try:
            yield
        finally:
            self._job_id = ""

    def subscribe(self, on_state: Callable[[EngineState], None]) -> None:
        """Call `on_state` now and at each change, in the thread that makes the change; it must be quick."""
        with self._changed:
            self._observers.append(on_state)
            on_state(self._state)

    def wait_ready(self, deadline: float, *, wanted: Callable[[], bool] = lambda: True) -> EngineState:
        """Wait until the engine answers.

        Args:
            deadline: Monotonic seconds.
            wanted: Whether to wait on; asked again and again.

        Raises:
            EngineNotReadyError: It does not in time, ended several times before it ever answered, or is stopped.
        """
        with self._changed:
            while not self._settled() and self._clock() < deadline and wanted():
                self._changed.wait(min(_WANTED_SECONDS, deadline - self._clock()))
            if self._state.ready:
                return self._state
            raise self._not_ready()

    def refuse_when_failing(self) -> None:
        """Say at once what `wait_ready` would say of an engine that has ended several times or is stopped.

        Raises:
            EngineNotReadyError: It has.
        """
        with self._changed:
            if self._settled() and not self._state.ready:
                raise self._not_ready()

    def _not_ready(self) -> EngineNotReadyError:
        return EngineNotReadyError(f"the engine is not ready: {self._state.error or 'it is still starting'}")

    def _settled(self) -> bool:
        return self._state.ready or self._stopping or self._failed_starts >= _FAILED_STARTS_TO_GIVE_UP

    def _keep_running(self) -> None:
        while not self._stopping:
            pause_seconds = self._one_life()
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=pause_seconds)
        self._update(alive=False, ready=False)

    def _one_life(self) -> float:
        """Start a process and stay with it to its end; returns the pause before the next one in seconds."""
        try:
            port = self._command.port or free_port()
            require_free_port(port)
            self._command.prepare()
            process = spawn(self._command.argv_for(port), cwd=self._command.cwd)
        except OSError as error:
            return self._failed(f"the engine can't be started: {error}")
        output = Output(process, job_id=lambda: self._job_id)
        with self._changed:
            self._set(generation=self._state.generation + 1, pid=process.pid, port=port)
            if self._stopping:  # `stop` came before there was a process to signal, and won't come again
                self._signal_group(signal.SIGKILL)
        problem = self._await_ready(process.pid, port)
        await_end(process.pid)
        return self._bury(process, output, problem)

    def _await_ready(self, pid: int, port: int) -> str:
        """Wait until the process answers, or has ended; returns why it was killed, "" if it was not."""
        started = self._clock()
        while not has_ended(pid):
            seconds = self._clock() - started
            if answers(port):
                _log.info("engine %d answers on port %d after %.2f s", pid, port, seconds)
                self._mark_ready()
                return ""
            with self._changed:
                if seconds > self._boot_seconds:
                    self._signal_group(signal.SIGKILL)
                    return f"did not answer within {self._boot_seconds:.0f} s"
                self._changed.wait(timeout=_POLL_SECONDS)
        return ""

    def _mark_ready(self) -> None:
        with self._changed:
            if not self._restart_reason and not self._stopping:
                self._ready_since = self._clock()
                self._failed_starts = 0
                self._set(ready=True, alive=True, error="")

    def _bury(self, process: subprocess.Popen[bytes], output: Output, problem: str) -> float:
        """Kill what the process left in its group, reap it, and say how long to wait before the next one."""
        with self._changed:
            was_ready = self._state.ready
            asked_to_end = self._restart_reason or self._stopping
            self._signal_group(signal.SIGKILL)  # before it is reaped: until then its number can't be another's
            self._restart_reason = ""
            self._set(ready=False, pid=0, port=0)
        status = process.wait()
        last_line = output.finish()
        if asked_to_end:
            return 0.0
        if was_ready and self._clock() - self._ready_since >= self._stable_seconds:
            self._failures = 0
        what = problem or describe_status(status)
        return self._failed(f"the engine {what}{last_line and ': '}{last_line}", was_ready=was_ready)

    def _failed(self, error: str, *, was_ready: bool = False) -> float:
        shortest, longest = self._backoff_seconds
        pause_seconds = min(longest, shortest * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._failed_starts += not was_ready
        _log.error("%s; next start in %.1f s", error, pause_seconds)
        alive = self._start_budget is None or self._failed_starts < self._start_budget
        self._update(alive=alive, ready=False, error=error)
        return pause_seconds

    def _signal_group(self, number: signal.Signals) -> None:
        if self._state.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._state.pid, number)

    def _update(self, **changes: object) -> None:
        with self._changed:
            self._set(**changes)

    def _set(self, **changes: object) -> None:
        """Replace the state and tell everybody; the caller holds the lock."""
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]  # the callers name fields of the state
        for on_state in self._observers:
            on_state(self._state)
        self._changed.notify_all()

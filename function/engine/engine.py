"""The engine as the pipeline sees it: a process that is kept running, and one workflow at a time in it."""

from __future__ import annotations

import logging
import re
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from function.cancellation import Cancellation
from function.engine.client import EngineClient, EngineRun, NotConnectedError, RunLimits, new_prompt_id
from function.engine.results import ignore_outputs
from function.errors import EngineUnavailableError, InterruptedJobError, NodeFailedError, OutOfMemoryError
from function.logs import current_job_id
from function.telemetry import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from function.engine.results import OnOutputs
    from function.engine.supervisor import EngineState, Supervisor
    from function.telemetry import Metrics, OnProgress
    from function.workflow import Workflow

_log = logging.getLogger("comfyfn.engine")

# A CUDA context is useless after these (CUDA runtime API, cudaError_t: "the process must be terminated and
# relaunched"), in the words of cudaGetErrorString; the last two are what the driver says of a GPU that is gone.
_BROKEN = re.compile(
    "illegal memory access|device-side assert|illegal instruction|misaligned address|invalid program counter"
    "|unspecified launch failure|launch timed out and was terminated|hardware stack error"
    "|not supported on global/shared address space|uncorrectable (?:ECC|NVLink) error|CUDA error: unknown error"
    "|STATUS_EXECUTION_FAILED|GPU is lost|fallen off the bus"
)
_CONNECT_TRIES = 5
_CONNECT_PAUSE_SECONDS = 0.1


class Engine:
    """Runs workflows in the supervised process, one at a time.

    Args:
        supervisor: Keeps the process; may have been started already.
        memory_limit_bytes: What the process may hold after a job without being replaced; 0: anything.
        metrics: Counts starts and runs, and shows whether the engine is ready.
        connect: Makes the client of an engine at a host and port.
        while_running: Makes a context that is open while a workflow runs, not while the engine boots.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        metrics: Metrics,
        memory_limit_bytes: int = 0,
        connect: Callable[[str, int], EngineClient] = EngineClient,
        while_running: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._supervisor = supervisor
        self._metrics = metrics
        self._memory_limit_bytes = memory_limit_bytes
        self._connect = connect
        self._while_running = while_running
        self._client: tuple[int, EngineClient] | None = None
        self._counted_starts = 0
        supervisor.subscribe(self._count)

    def run(
        self,
        workflow: Workflow,
        *,
        deadline: float,
        cancellation: Cancellation | None = None,
        on_progress: OnProgress = ignore_progress,
        on_outputs: OnOutputs = ignore_outputs,
    ) -> EngineRun:
        """Wait for the engine and run a workflow; one that runs out of memory once gets a second try in a freed engine.

        Args:
            workflow: The graph in API format.
            deadline: Monotonic seconds.
            cancellation: Ends the run with its reason as soon as the engine obeys; None: nobody will cancel it.
            on_progress: Told of each change, in this thread.
            on_outputs: Told of files as they are written, in this thread, also in a first try that runs out of memory.

        Raises:
            EngineUnavailableError: The engine wasn't ready in time, keeps failing, died, or lost its CUDA context; all
                else as in `EngineClient.run`. A run that can't be interrupted costs the engine its process.
        """
        cancellation = cancellation or Cancellation()
        attempt = partial(self._attempt, workflow, deadline, cancellation, on_progress, on_outputs)
        try:
            with self._supervisor.working_for(current_job_id()):
                return self._run_twice_at_most(attempt)
        except InterruptedJobError as error:
            raise cancellation.reason or error from error
        except NodeFailedError as error:
            if _BROKEN.search(error.message):
                # Another job may have broken it, so this one gets its other attempts.
                self._supervisor.restart(error.message)
                raise EngineUnavailableError(f"the engine has to be replaced: {error.message}") from error
            raise

    def close(self) -> None:
        """Close the connections to the process; the next run opens new ones."""
        if self._client:
            self._client[1].close()
        self._client = None

    def recycle(self) -> None:
        """Replace the process if it has grown over its limit; returns at once, and the next run waits."""
        if self._memory_limit_bytes:
            self._supervisor.recycle_above(self._memory_limit_bytes)

    def _run_twice_at_most(self, attempt: Callable[[], EngineRun]) -> EngineRun:
        try:
            return attempt()
        except OutOfMemoryError as error:
            _log.warning("%s; trying once more with freed memory", error.message)
            self._free()
            return attempt()

    def _attempt(
        self,
        workflow: Workflow,
        deadline: float,
        cancellation: Cancellation,
        on_progress: OnProgress,
        on_outputs: OnOutputs,
    ) -> EngineRun:
        run = partial(self._run_when_ready, workflow, deadline, cancellation, on_progress, on_outputs)
        for _ in range(_CONNECT_TRIES - 1):
            try:
                return run()
            except NotConnectedError:  # it has just died, and the supervisor is about to notice
                time.sleep(_CONNECT_PAUSE_SECONDS)
        return run()

    def _run_when_ready(
        self,
        workflow: Workflow,
        deadline: float,
        cancellation: Cancellation,
        on_progress: OnProgress,
        on_outputs: OnOutputs,
    ) -> EngineRun:
        state = self._supervisor.wait_ready(deadline)
        cancellation.check()
        limits = RunLimits(
            deadline=deadline,
            is_alive=lambda: self._supervisor.ready and self._supervisor.generation == state.generation,
            is_cancelled=lambda: cancellation.reason is not None,
            on_stuck=lambda: self._supervisor.restart("a run could not be interrupted"),
        )
        client = self._client_of(state)
        with self._while_running(), self._metrics.engine_run_seconds.time():
            return client.run(
                workflow, prompt_id=new_prompt_id(), limits=limits, on_progress=on_progress, on_outputs=on_outputs
            )

    def _free(self) -> None:
        with suppress(EngineUnavailableError):  # then the second try says so
            self._client_of(self._supervisor.state).free()

    def _client_of(self, state: EngineState) -> EngineClient:
        """The client of one process: its connections are never those of the process before."""
        if self._client and self._client[0] != state.generation:
            self.close()
        if not self._client:
            self._client = state.generation, self._connect(self._supervisor.address[0], state.port)
        return self._client[1]

    def _count(self, state: EngineState) -> None:
        self._metrics.engine_ready.set(state.ready)
        self._metrics.engine_starts.inc(state.generation - self._counted_starts)
        self._counted_starts = state.generation

"""The engine as the pipeline sees it: a process that is kept running, and one workflow at a time in it."""

from __future__ import annotations

import logging
import re
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from function.cancellation import Cancellation
from function.engine.client import (
    EngineBusyError,
    EngineClient,
    EngineRun,
    NotConnectedError,
    RunLimits,
    new_prompt_id,
)
from function.engine.progress import rising
from function.engine.results import ignore_outputs
from function.engine.views import view_file
from function.errors import EngineUnavailableError, InterruptedJobError, NodeFailedError, OutOfMemoryError
from function.logs import current_job_id
from function.telemetry import ignore_progress
from function.validation.definitions import output_nodes

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from function.engine.previews import OnPreview
    from function.engine.results import EngineFile, OnOutputs
    from function.engine.supervisor import EngineState, Supervisor
    from function.engine.views import ViewedFile
    from function.telemetry import Metrics, OnProgress
    from function.validation.definitions import Definitions
    from function.workflow import Workflow

    _RunIn: TypeAlias = Callable[[EngineClient, RunLimits], EngineRun]

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
_BUSY_SECONDS = 90.0
"""Longer than the catalogue waits for `/object_info`, which keeps ComfyUI from answering anybody else."""


class Engine:
    """Runs workflows in the supervised process, one at a time.

    Args:
        supervisor: Keeps the process; may have been started already.
        memory_limit_bytes: What the process may hold after a job without being replaced; 0: anything.
        metrics: Counts starts and runs, and shows whether the engine is ready.
        connect: Makes the client of an engine at a host and port.
        while_running: Makes a context that is open while a workflow runs, not while the engine boots.
        definitions: What the engine is known to say of its nodes; None: nothing yet.
        busy_seconds: For how long a process that is there may leave connections unanswered without being replaced.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        metrics: Metrics,
        memory_limit_bytes: int = 0,
        connect: Callable[[str, int], EngineClient] = EngineClient,
        while_running: Callable[[], AbstractContextManager[object]] = nullcontext,
        definitions: Callable[[], Definitions | None] = lambda: None,
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        self._supervisor = supervisor
        self._metrics = metrics
        self._memory_limit_bytes = memory_limit_bytes
        self._connect = connect
        self._while_running = while_running
        self._definitions = definitions
        self._busy_seconds = busy_seconds
        self._busy_since: tuple[int, float] | None = None
        self._client: tuple[int, EngineClient] | None = None
        self._counted_starts = 0
        supervisor.subscribe(self._count)

    def refuse_when_failing(self) -> None:
        """Refuse a job while the engine does not start; see `Supervisor.refuse_when_failing`."""
        self._supervisor.refuse_when_failing()

    def run(
        self,
        workflow: Workflow,
        *,
        deadline: float,
        cancellation: Cancellation | None = None,
        on_progress: OnProgress = ignore_progress,
        on_outputs: OnOutputs = ignore_outputs,
        on_preview: OnPreview | None = None,
    ) -> EngineRun:
        """Wait for the engine and run a workflow; one that runs out of memory once gets a second try in a freed engine.

        Args:
            workflow: The graph in API format.
            deadline: Monotonic seconds.
            cancellation: Ends the run with its reason as soon as the engine obeys; None: nobody will cancel it.
            on_progress: Told of each change, in this thread.
            on_outputs: Told of files as they are written, in this thread, also in a first try that runs out of memory.
            on_preview: Told of pictures of the run, in this thread; None: the engine is not asked for any.

        Raises:
            EngineNotReadyError: The engine wasn't ready in time, or keeps failing.
            EngineUnavailableError: The engine died or lost its CUDA context; all else as in `EngineClient.run`. An
                engine that doesn't answer as ComfyUI does, and one whose run can't be interrupted, are replaced.
        """
        cancellation = cancellation or Cancellation()
        outputs = output_nodes(workflow, self._definitions())
        tell = rising(on_progress)  # also where the second try begins anew

        def run_in(client: EngineClient, limits: RunLimits) -> EngineRun:
            return client.run(
                workflow,
                prompt_id=new_prompt_id(),
                limits=limits,
                outputs=outputs,
                on_progress=tell,
                on_outputs=on_outputs,
                on_preview=on_preview,
            )

        attempt = partial(self._attempt, run_in, deadline, cancellation)
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
        """Close the connections that are kept to the process; the next run opens new ones."""
        if self._client:
            self._client[1].close()
        self._client = None

    def view(self, file: EngineFile) -> ViewedFile | None:
        """Begin to read a file that does not lie where this process could read it; see `view_file`."""
        host, port = self._supervisor.address
        return view_file(host, port, file)

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

    def _attempt(self, run_in: _RunIn, deadline: float, cancellation: Cancellation) -> EngineRun:
        refused = 0
        while refused < _CONNECT_TRIES:
            state = self._ready(deadline, cancellation)
            began = time.monotonic()
            try:
                return self._run_once(state, run_in, deadline, cancellation)
            except EngineBusyError:
                if self._silent_seconds(state, began) >= self._busy_seconds:
                    break
                if time.monotonic() >= deadline:
                    raise
            except NotConnectedError:  # it has just died, and the supervisor is about to notice
                refused += 1
            time.sleep(_CONNECT_PAUSE_SECONDS)
        self._replace(state, "it takes no connection")
        return self._run_once(self._ready(deadline, cancellation), run_in, deadline, cancellation)

    def _silent_seconds(self, state: EngineState, began: float) -> float:
        """For how long a process has answered no run that tried, this one among them, which began then."""
        if not self._busy_since or self._busy_since[0] != state.generation:
            self._busy_since = state.generation, began
        return time.monotonic() - self._busy_since[1]

    def _ready(self, deadline: float, cancellation: Cancellation) -> EngineState:
        try:
            return self._supervisor.wait_ready(deadline, wanted=lambda: cancellation.reason is None)
        except EngineUnavailableError:
            cancellation.check()
            raise

    def _run_once(self, state: EngineState, run_in: _RunIn, deadline: float, cancellation: Cancellation) -> EngineRun:
        cancellation.check()
        limits = RunLimits(
            deadline=deadline,
            is_alive=lambda: self._supervisor.ready and self._supervisor.generation == state.generation,
            is_cancelled=lambda: cancellation.reason is not None,
            on_stuck=lambda: self._supervisor.restart("a run could not be interrupted"),
        )
        busy_since, self._busy_since = self._busy_since, None
        try:
            with self._while_running(), self._metrics.engine_run_seconds.time():
                return run_in(self._client_of(state), limits)
        except EngineBusyError:
            self._busy_since = busy_since
            raise
        except NotConnectedError:
            raise
        except EngineUnavailableError as error:
            self._replace(state, error.message)
            raise

    def _replace(self, state: EngineState, reason: str) -> None:
        """Replace a process that is still there and does not do what an engine does."""
        if self._supervisor.ready and self._supervisor.generation == state.generation:
            _log.warning("the engine is replaced: %s", reason)
            self._supervisor.restart(reason)

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

"""A run in an engine: ComfyUI's HTTP and WebSocket protocol, followed to the end.

Nothing here waits for ever: each request has a timeout, and each wait ends with the run's deadline or the engine's
process. The socket tells how far the run is and which files are written already; what came of it is read from the
history, unless the socket has told all of it.
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from function.engine.account import RunAccount
from function.engine.api import EngineApi, RunState
from function.engine.previews import EXTRA_DATA, HELLO, LatestPreview, parse_preview
from function.engine.progress import RunProgress
from function.engine.results import EngineFile, EngineRun, ignore_outputs, parse_executed, parse_run, to_refusal
from function.engine.sockets import EngineBusyError, NotConnectedError, RunSocket
from function.errors import (
    DeadlineExceededError,
    EngineUnavailableError,
    InterruptedJobError,
    InvalidWorkflowError,
)
from function.telemetry import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from function.engine.previews import OnPreview
    from function.engine.results import OnOutputs
    from function.telemetry import OnProgress
    from function.workflow import Workflow

__all__ = [
    "EngineBusyError",
    "EngineClient",
    "EngineFile",
    "EngineRun",
    "NotConnectedError",
    "RunLimits",
    "new_prompt_id",
]

_SUBMIT_SECONDS = 60.0  # ComfyUI validates before it answers, and lists model directories for that
_RECORD_SECONDS = 30.0
_ASK_SECONDS = 5.0
_LEAST_SECONDS = 1.0
_TICK_SECONDS = 0.1
_RETRY_SECONDS = 0.05
_QUIET_SECONDS = 5.0
_TRUSTED_SECONDS = 0.1
_OK = 200
_BAD_REQUEST = 400
_TOO_LARGE = 413
_SERVER_ERROR = 500


def new_prompt_id() -> str:
    """An id for one run: newer cores refuse anything but a canonical UUID, older ones don't notice a repeated one."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What ends a run from outside.

    Attributes:
        deadline: Monotonic seconds.
        is_alive: Whether the process that took the run still runs.
        is_cancelled: Whether the run is no longer wanted.
        on_stuck: Called before the error is raised when the run could not be interrupted: only a new process helps.
    """

    deadline: float
    is_alive: Callable[[], bool] = lambda: True
    is_cancelled: Callable[[], bool] = lambda: False
    on_stuck: Callable[[], None] = lambda: None


class EngineClient:
    """Runs workflows in one engine, one at a time; keeps its connections from run to run, until it is closed.

    Args:
        host: Where it listens.
        port: Where it listens.
        interrupt_seconds: How long to try to interrupt a run before it counts as stuck.
        quiet_seconds: After how long without a message to ask whether the run still is there.
        trusted_seconds: For how long after a run a kept socket counts as alive without being asked.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        interrupt_seconds: float = 5.0,
        quiet_seconds: float = _QUIET_SECONDS,
        trusted_seconds: float = _TRUSTED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = f"{host}:{port}"
        self._api = EngineApi(host, port)
        self._interrupt_seconds = interrupt_seconds
        self._quiet_seconds = quiet_seconds
        self._trusted_seconds = trusted_seconds
        self._clock = clock
        self._kept: RunSocket | None = None

    def run(
        self,
        workflow: Workflow,
        *,
        prompt_id: str,
        limits: RunLimits,
        outputs: Collection[str] = (),
        on_progress: OnProgress = ignore_progress,
        on_outputs: OnOutputs = ignore_outputs,
        on_preview: OnPreview | None = None,
    ) -> EngineRun:
        """Run a workflow to its end.

        Args:
            workflow: The graph in API format.
            prompt_id: From `new_prompt_id`, used once.
            limits: What ends the run from outside.
            outputs: Its output nodes, for the progress; see `RunProgress`.
            on_progress: Told of each change, in this thread.
            on_outputs: Told of the files of each node that ended, in this thread. It may miss some that the run has.
            on_preview: Told of the latest picture, in this thread; None: the engine is not asked for any.

        Raises:
            InvalidWorkflowError: The engine refuses the workflow or would drop a part of it.
            NodeFailedError: A node raised; ModelMissingError or OutOfMemoryError if that was the reason.
            InterruptedJobError: It was cancelled here or interrupted elsewhere.
            DeadlineExceededError: The deadline passed; the run was interrupted.
            EngineUnavailableError: The engine died, doesn't answer, or lost the run; NotConnectedError before there was
                a run.
        """
        progress = RunProgress(
            workflow, prompt_id=prompt_id, on_progress=on_progress, outputs=outputs, clock=self._clock
        )
        account = RunAccount(workflow, prompt_id=prompt_id)
        watch = _Watch(prompt_id, progress, account, on_outputs, on_preview, self._clock)
        with self._socket(HELLO if on_preview else "", limits) as socket:  # before there is a run: it misses no message
            self._submit(workflow, prompt_id, socket.client_id, limits, EXTRA_DATA if on_preview else {})
            self._follow(socket, watch, limits)
            told = None if socket.was_lost else account.record()
        entry = told or self._api.history(prompt_id, timeout_seconds=self._patience(limits, _RECORD_SECONDS))
        if entry is None:
            raise EngineUnavailableError("the engine has no record of the run that it ended")
        run = parse_run(prompt_id, entry, node_seconds=progress.node_seconds, node_starts=progress.node_starts)
        progress.finish()
        return run

    def close(self) -> None:
        """Close the connections that are kept."""
        kept, self._kept = self._kept, None
        if kept:
            kept.close()
        self._api.close()

    @contextmanager
    def _socket(self, hello: str, limits: RunLimits) -> Iterator[RunSocket]:
        """The socket of a run, connected: the one that was kept, or a new one. It is kept again if all went well.

        ComfyUI takes only the first message for a hello, so one that said another hello does not serve.
        """
        socket, self._kept = self._kept, None
        with ExitStack() as closing:
            if socket:
                closing.callback(socket.close)
            if not (socket and socket.hello == hello and socket.reopen(limits.deadline)):
                closing.close()
                socket = RunSocket(self._address, hello=hello, trusted_seconds=self._trusted_seconds, clock=self._clock)
                closing.callback(socket.close)
                socket.open(limits.deadline)
            yield socket
            if not socket.was_lost:
                closing.pop_all()
                self._kept = socket

    def free(self) -> None:
        """Ask the engine to free its memory before the next run; see `EngineApi.free`."""
        self._api.free()

    def _submit(
        self, workflow: Workflow, prompt_id: str, client_id: str, limits: RunLimits, extra_data: dict[str, str]
    ) -> None:
        try:
            status, answer = self._api.submit(
                workflow,
                prompt_id=prompt_id,
                client_id=client_id,
                extra_data=extra_data,
                timeout_seconds=self._patience(limits, _SUBMIT_SECONDS),
            )
        except EngineUnavailableError:
            self._cancel(prompt_id, limits)  # it may have taken the run all the same
            raise
        if status == _OK and isinstance(answer, dict) and not answer.get("node_errors"):
            return
        if status in (_OK, _SERVER_ERROR):
            # 200: it runs the outputs that are valid and drops the others, which is no success. 500: ComfyUI may have
            # taken the run all the same.
            self._cancel(prompt_id, limits)
        if status == _SERVER_ERROR:
            self._api.state(
                prompt_id, timeout_seconds=self._patience(limits, _ASK_SECONDS)
            )  # raises if it isn't the workflow that it can't answer
        raise _refusal(status, answer)

    def _follow(self, socket: RunSocket, watch: _Watch, limits: RunLimits) -> None:
        """Watch the run until it has ended, by the socket or, where that is lost or silent, by asking."""
        ask_at = self._clock() + self._quiet_seconds
        while not watch.progress.ended:
            self._check(watch.prompt_id, limits)
            message = socket.receive(_TICK_SECONDS)
            if message is not None:
                watch.see(message)
                ask_at = self._clock() + self._quiet_seconds
            elif socket.was_lost or self._clock() >= ask_at:
                if self._has_ended(watch.prompt_id, limits):
                    break
                ask_at = self._clock() + self._quiet_seconds
            watch.hand_on()
        watch.hand_on(at_once=True)

    def _has_ended(self, prompt_id: str, limits: RunLimits) -> bool:
        try:
            state = self._api.state(prompt_id, timeout_seconds=self._patience(limits, _ASK_SECONDS))
        except EngineUnavailableError:  # busy or dead: the process tells which
            return False
        if state is RunState.UNKNOWN:
            raise EngineUnavailableError("the engine lost the run: it is neither in its queue nor in its history")
        return state is RunState.ENDED

    def _check(self, prompt_id: str, limits: RunLimits) -> None:
        if not limits.is_alive():
            raise EngineUnavailableError("the engine died while it ran the workflow")
        if limits.is_cancelled():
            self._cancel(prompt_id, limits)
            raise InterruptedJobError("the run was interrupted")
        if self._clock() >= limits.deadline:
            self._cancel(prompt_id, limits)
            raise DeadlineExceededError("the deadline passed while the workflow ran; it was interrupted")

    def _patience(self, limits: RunLimits, most_seconds: float) -> float:
        """How long to wait for an answer: not much beyond the deadline, but an engine that is in order can answer."""
        return min(most_seconds, max(_LEAST_SECONDS, limits.deadline - self._clock()))

    def _cancel(self, prompt_id: str, limits: RunLimits) -> None:
        """Interrupt the run until it is gone; the engine forgets an interrupt that comes just as a run starts."""
        give_up_at = self._clock() + self._interrupt_seconds
        while limits.is_alive():
            left_seconds = max(_LEAST_SECONDS, give_up_at - self._clock())
            with suppress(EngineUnavailableError):
                self._api.interrupt(prompt_id, timeout_seconds=left_seconds)
                if self._api.state(prompt_id, timeout_seconds=left_seconds) is not RunState.WAITING:
                    return
            if self._clock() >= give_up_at:
                limits.on_stuck()
                return
            time.sleep(_RETRY_SECONDS)


class _Watch:
    """Who hears of a run."""

    def __init__(
        self,
        prompt_id: str,
        progress: RunProgress,
        account: RunAccount,
        on_outputs: OnOutputs,
        on_preview: OnPreview | None,
        clock: Callable[[], float],
    ) -> None:
        self.prompt_id = prompt_id
        self.progress = progress
        self._account = account
        self._on_outputs = on_outputs
        self._previews = LatestPreview(on_preview, clock=clock) if on_preview else None

    def see(self, message: dict[str, Any] | bytes) -> None:
        """Tell of what a message says; a binary one is a preview or nothing that anybody asked for."""
        if isinstance(message, bytes):
            if self._previews and (preview := parse_preview(message, prompt_id=self.prompt_id)):
                self._previews.put(replace(preview, node_id=preview.node_id or self.progress.node_id))
            return
        self.progress.see(message)
        self._account.see(message)
        if files := parse_executed(message, prompt_id=self.prompt_id):
            self._on_outputs(files)

    def hand_on(self, *, at_once: bool = False) -> None:
        """Hand on the preview whose time has come."""
        if self._previews:
            self._previews.hand_on(at_once=at_once)


def _refusal(status: int, answer: object) -> InvalidWorkflowError | EngineUnavailableError:
    if status in (_OK, _BAD_REQUEST) and isinstance(answer, dict):
        return to_refusal(answer)
    if status == _TOO_LARGE:
        return InvalidWorkflowError("the workflow is larger than the engine takes: raise --max-upload-size in CMD")
    if status == _SERVER_ERROR:  # what ComfyUI answers to a body that it can't read as a workflow
        return InvalidWorkflowError("the engine can't read the workflow: it answered HTTP 500")
    return EngineUnavailableError(f"the engine answered POST /prompt with HTTP {status}")

"""A run in an engine: ComfyUI's HTTP and WebSocket protocol, followed to the end.

Nothing here waits for ever: each request has a timeout, and each wait ends with the run's deadline or the engine's
process. The socket only tells how far the run is, which files are written already, and when to look; what came of it
is read from the history.
"""

from __future__ import annotations

import json
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from websockets.exceptions import WebSocketException

from function.engine.api import EngineApi, RunState
from function.engine.frames import FrameSocket
from function.engine.progress import RunProgress
from function.engine.results import EngineFile, EngineRun, ignore_outputs, parse_executed, parse_run, to_refusal
from function.errors import (
    DeadlineExceededError,
    EngineUnavailableError,
    InterruptedJobError,
    InvalidWorkflowError,
)
from function.telemetry import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.engine.results import OnOutputs
    from function.telemetry import OnProgress
    from function.workflow import Workflow

__all__ = ["EngineClient", "EngineFile", "EngineRun", "NotConnectedError", "RunLimits", "new_prompt_id"]

_SUBMIT_SECONDS = 60.0  # ComfyUI validates before it answers, and lists model directories for that
_CONNECT_SECONDS = 5.0
_TICK_SECONDS = 0.1
_RETRY_SECONDS = 0.05
_QUIET_SECONDS = 5.0
_OK = 200
_BAD_REQUEST = 400
_TOO_LARGE = 413
_SERVER_ERROR = 500


class NotConnectedError(EngineUnavailableError):
    """The engine took no connection, so nothing was submitted: the run may be tried again at once."""


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
    """Runs workflows in one engine, whose connections it keeps from one run to the next until it is closed.

    Args:
        host: Where it listens.
        port: Where it listens.
        interrupt_seconds: How long to try to interrupt a run before it counts as stuck.
        quiet_seconds: After how long without a message to ask whether the run still is there.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        interrupt_seconds: float = 5.0,
        quiet_seconds: float = _QUIET_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = f"{host}:{port}"
        self._api = EngineApi(host, port)
        self._interrupt_seconds = interrupt_seconds
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._idle: list[_Socket] = []

    def run(
        self,
        workflow: Workflow,
        *,
        prompt_id: str,
        limits: RunLimits,
        on_progress: OnProgress = ignore_progress,
        on_outputs: OnOutputs = ignore_outputs,
    ) -> EngineRun:
        """Run a workflow to its end.

        Args:
            workflow: The graph in API format.
            prompt_id: From `new_prompt_id`, used once.
            limits: What ends the run from outside.
            on_progress: Told of each change, in this thread.
            on_outputs: Told of the files of each node that ended, in this thread. It may miss some: the history, which
                ComfyUI writes when the whole run has ended, is the truth.

        Raises:
            InvalidWorkflowError: The engine refuses the workflow or would drop a part of it.
            NodeFailedError: A node raised; ModelMissingError or OutOfMemoryError if that was the reason.
            InterruptedJobError: It was cancelled here or interrupted elsewhere.
            DeadlineExceededError: The deadline passed; the run was interrupted.
            EngineUnavailableError: The engine died, doesn't answer, or lost the run; NotConnectedError before there was
                a run.
        """
        progress = RunProgress(workflow, prompt_id=prompt_id, on_progress=on_progress, clock=self._clock)
        with self._socket() as socket:  # before the run exists, so that no message of it is missed
            self._submit(workflow, prompt_id, socket, limits)
            self._follow(socket, progress, prompt_id=prompt_id, limits=limits, on_outputs=on_outputs)
        entry = self._api.history(prompt_id)
        if entry is None:
            raise EngineUnavailableError("the engine has no record of the run that it ended")
        run = parse_run(prompt_id, entry, node_seconds=progress.node_seconds)
        progress.finish()
        return run

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            self._idle.pop().close()
        self._api.close()

    @contextmanager
    def _socket(self) -> Iterator[_Socket]:
        """The socket of a run: a kept one if it still is open. It is kept again if all went well."""
        socket = self._idle.pop() if self._idle else _Socket(self._address)
        if not socket.is_open():
            socket = _Socket(self._address)
            socket.open()
        with ExitStack() as closing:
            closing.callback(socket.close)
            yield socket
            if not socket.was_lost:
                closing.pop_all()
                socket.was_kept = True
                self._idle.append(socket)

    def free(self) -> None:
        """Ask the engine to free its memory before the next run; see `EngineApi.free`."""
        self._api.free()

    def _submit(self, workflow: Workflow, prompt_id: str, socket: _Socket, limits: RunLimits) -> None:
        timeout_seconds = min(_SUBMIT_SECONDS, max(_TICK_SECONDS, limits.deadline - self._clock()))
        try:
            status, answer = self._api.submit(
                workflow, prompt_id=prompt_id, client_id=socket.client_id, timeout_seconds=timeout_seconds
            )
        except EngineUnavailableError as error:
            self._cancel(prompt_id, limits)  # it may have taken the run all the same
            if socket.was_kept:  # it may have died since; a new connection, which is tried next, would have told
                raise NotConnectedError(error.message) from error
            raise
        if status == _OK and isinstance(answer, dict) and not answer.get("node_errors"):
            return
        if status == _OK:  # it runs the outputs that are valid and drops the others: that is no success
            self._cancel(prompt_id, limits)
        raise _refusal(status, answer)

    def _follow(
        self, socket: _Socket, progress: RunProgress, *, prompt_id: str, limits: RunLimits, on_outputs: OnOutputs
    ) -> None:
        """Watch the run until it has ended, by the socket or, where that is lost or silent, by asking."""
        ask_at = self._clock() + self._quiet_seconds
        while not progress.ended:
            self._check(prompt_id, limits)
            message = socket.receive(_TICK_SECONDS)
            if message is not None:
                progress.see(message)
                if files := parse_executed(message, prompt_id=prompt_id):
                    on_outputs(files)
                ask_at = self._clock() + self._quiet_seconds
            elif socket.was_lost or self._clock() >= ask_at:
                if self._has_ended(prompt_id):
                    return
                ask_at = self._clock() + self._quiet_seconds

    def _has_ended(self, prompt_id: str) -> bool:
        try:
            state = self._api.state(prompt_id)
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

    def _cancel(self, prompt_id: str, limits: RunLimits) -> None:
        """Interrupt the run until it is gone; the engine forgets an interrupt that comes just as a run starts."""
        give_up_at = self._clock() + self._interrupt_seconds
        while limits.is_alive():
            with suppress(EngineUnavailableError):
                self._api.interrupt(prompt_id)
                if self._api.state(prompt_id) is not RunState.WAITING:
                    return
            if self._clock() >= give_up_at:
                limits.on_stuck()
                return
            time.sleep(_RETRY_SECONDS)


class _Socket:
    """The socket of one run after the other.

    It comes back under the same client id, because the engine addresses messages to the id that the run was submitted
    with. ComfyUI may not have noticed the old connection's end and then drops the new one's registration together with
    it, so after a loss `was_lost` stays true and silence means nothing any more.
    """

    def __init__(self, address: str) -> None:
        self.client_id = uuid.uuid4().hex
        self.was_lost = False
        self.was_kept = False
        self._url = f"ws://{address}/ws?clientId={self.client_id}"
        self._connection: FrameSocket | None = None

    def open(self) -> None:
        """Connect.

        Raises:
            NotConnectedError: The engine takes no connection.
        """
        try:
            self._connection = self._connect()
        except (OSError, WebSocketException) as error:
            raise NotConnectedError(f"the engine takes no connection: {error}") from error

    def is_open(self) -> bool:
        """Whether it is connected, as far as can be seen; what has come since the last run is dropped."""
        while self._connection and self.receive(0.0) is not None:
            pass
        return self._connection is not None

    def receive(self, timeout_seconds: float) -> dict[str, Any] | None:
        """The next message, {} for a binary one; None when none came in time or the connection is lost."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            return _parse_message(self._connection.recv(timeout_seconds))
        except TimeoutError:
            return None
        except (OSError, WebSocketException):
            self.was_lost = True
            self.close()
            time.sleep(timeout_seconds)  # a refused connection fails at once
            return None

    def close(self) -> None:
        """End the connection; does nothing if there is none."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _connect(self) -> FrameSocket:
        return FrameSocket(self._url, open_seconds=_CONNECT_SECONDS)


def _parse_message(frame: str | bytes) -> dict[str, Any]:
    """A message; {} for previews and for whatever isn't ComfyUI's."""
    if isinstance(frame, bytes):
        return {}
    try:
        message = json.loads(frame)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _refusal(status: int, answer: object) -> InvalidWorkflowError | EngineUnavailableError:
    if status in (_OK, _BAD_REQUEST) and isinstance(answer, dict):
        return to_refusal(answer)
    if status == _TOO_LARGE:
        return InvalidWorkflowError("the workflow is larger than the engine takes: raise --max-upload-size in CMD")
    if status == _SERVER_ERROR:  # what ComfyUI answers to a body that it can't read as a workflow
        return InvalidWorkflowError("the engine can't read the workflow: it answered HTTP 500")
    return EngineUnavailableError(f"the engine answered POST /prompt with HTTP {status}")

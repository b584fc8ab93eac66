"""ComfyUI's HTTP routes that a run needs, one method each."""

from __future__ import annotations

import enum
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from function.engine.wire import AnswerTooLargeError, EngineConnection, ask
from function.errors import EngineUnavailableError, NodeFailedError

if TYPE_CHECKING:
    from function.workflow import Workflow

_REQUEST_SECONDS = 5.0
_KEPT_SECONDS = 1.0
_OK = 200
_NOT_FOUND = 404
_MIB = 1024**2
_MAX_ANSWER_BYTES = 32 * _MIB
_MAX_NODES_BYTES = 64 * _MIB  # 20,000 LoRAs in 60 loaders are about 50 MB


class RunState(enum.Enum):
    """Where a run is, as far as the engine knows."""

    WAITING = "queued or running"
    ENDED = "in the history"
    UNKNOWN = "neither"


class EngineApi:
    """HTTP to one engine, for one run after the other.

    A connection serves the next request only if that comes within a second: servers keep idle ones for longer than that
    (uvicorn for 5 s, aiohttp for 75 s), so that none goes stale while a request is on its way.

    Every method raises EngineUnavailableError when the engine does not answer in time, or answers with what isn't its
    protocol, or with more than `max_answer_bytes` beside the workflow that it repeats.
    """

    def __init__(self, host: str, port: int, *, max_answer_bytes: int = _MAX_ANSWER_BYTES) -> None:
        self._host = host
        self._port = port
        self._max_answer_bytes = max_answer_bytes
        self._repeated_bytes = 0
        self._idle: list[tuple[float, EngineConnection]] = []

    def close(self) -> None:
        """Close the connections that are kept; the next request opens a new one."""
        while self._idle:
            self._idle.pop()[1].close()

    def submit(
        self, workflow: Workflow, *, prompt_id: str, client_id: str, extra_data: dict[str, str], timeout_seconds: float
    ) -> tuple[int, object]:
        """POST /prompt: the status and the answer, as JSON where it is JSON, else as text."""
        body = {"prompt": workflow, "prompt_id": prompt_id, "client_id": client_id}
        content = json.dumps(body | ({"extra_data": extra_data} if extra_data else {})).encode()
        self._repeated_bytes = len(content)  # by the queue and by the history
        status, payload = self._request("POST", "/prompt", content, timeout_seconds=timeout_seconds)
        try:
            return status, json.loads(payload)
        except (ValueError, RecursionError):
            return status, payload.decode("utf-8", "replace")

    def history(self, prompt_id: str, *, timeout_seconds: float = _REQUEST_SECONDS) -> dict[str, Any] | None:
        """The record of a run that ended; None while it is queued or runs, and for an unknown one.

        Raises:
            NodeFailedError: It is too large to be read: nodes put their texts and, when they fail, their inputs there.
        """
        try:
            entry = self._get(f"/history/{prompt_id}", timeout_seconds=timeout_seconds).get(prompt_id)
        except AnswerTooLargeError as error:
            raise NodeFailedError(f"a node's output is too large to be reported: {error.message}") from error
        return entry if isinstance(entry, dict) else None

    def state(self, prompt_id: str, *, timeout_seconds: float = _REQUEST_SECONDS) -> RunState:
        """Where a run is; the history alone can't tell a queued run from an unknown one."""
        if self.history(prompt_id, timeout_seconds=timeout_seconds) is not None:
            return RunState.ENDED
        if self._is_queued(prompt_id, timeout_seconds):
            return RunState.WAITING
        # It may have ended between the two looks.
        entry = self.history(prompt_id, timeout_seconds=timeout_seconds)
        return RunState.UNKNOWN if entry is None else RunState.ENDED

    def interrupt(self, prompt_id: str, *, timeout_seconds: float = _REQUEST_SECONDS) -> None:
        """Ask for the end of a run, queued or running; the engine says nothing about whether it took effect."""
        self._post("/queue", {"delete": [prompt_id]}, timeout_seconds)
        self._post("/interrupt", {"prompt_id": prompt_id}, timeout_seconds)

    def free(self) -> None:
        """Ask the engine to unload its models and to forget cached results; it does so before its next run."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def system_stats(self) -> dict[str, Any]:
        """What the engine is, and its devices."""
        return self._get("/system_stats")

    def object_info(self, *, timeout_seconds: float) -> dict[str, Any]:
        """Every node class with its inputs and outputs."""
        return self._get("/object_info", timeout_seconds=timeout_seconds, max_bytes=_MAX_NODES_BYTES)

    def lacks_class(self, class_type: str) -> bool:
        """Whether the engine has no such node class; of one whose inputs it can't list now, it answers HTTP 500."""
        status, payload = self._request("GET", f"/object_info/{quote(class_type, safe='')}")
        return status == _OK and payload.strip() == b"{}"

    def node_replacements(self) -> dict[str, Any]:
        """Classes that are gone, with what the engine puts in their place; none where it knows no such thing yet."""
        status, payload = self._request("GET", "/node_replacements")
        return {} if status == _NOT_FOUND else _object("/node_replacements", status, payload)

    def _is_queued(self, prompt_id: str, timeout_seconds: float) -> bool:
        queue = self._get("/queue", timeout_seconds=timeout_seconds)
        try:
            return any(item[1] == prompt_id for name in ("queue_running", "queue_pending") for item in queue[name])
        except (TypeError, LookupError) as error:
            raise EngineUnavailableError("the engine's answer to GET /queue is no queue") from error

    def _get(
        self, path: str, *, timeout_seconds: float = _REQUEST_SECONDS, max_bytes: int | None = None
    ) -> dict[str, Any]:
        return _object(path, *self._request("GET", path, timeout_seconds=timeout_seconds, max_bytes=max_bytes))

    def _post(self, path: str, body: dict[str, Any], timeout_seconds: float = _REQUEST_SECONDS) -> None:
        status, _payload = self._request("POST", path, json.dumps(body).encode(), timeout_seconds=timeout_seconds)
        if status != _OK:
            raise EngineUnavailableError(f"the engine answered POST {path} with HTTP {status}")

    def _request(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        *,
        timeout_seconds: float = _REQUEST_SECONDS,
        max_bytes: int | None = None,
    ) -> tuple[int, bytes]:
        connection = self._connection(timeout_seconds)
        most_bytes = max_bytes or self._max_answer_bytes + self._repeated_bytes
        answer = ask(connection, method, path, content, max_bytes=most_bytes)
        self._idle.append((time.monotonic(), connection))
        return answer

    def _connection(self, timeout_seconds: float) -> EngineConnection:
        """The one that was kept, or a new one; one that is closed connects by itself."""
        if not self._idle:
            return EngineConnection(self._host, self._port, timeout_seconds=timeout_seconds)
        since, connection = self._idle.pop()
        if time.monotonic() - since > _KEPT_SECONDS or connection.has_ended():
            connection.close()
        connection.allow(timeout_seconds)
        return connection


def _object(path: str, status: int, payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        document = None
    if status != _OK or not isinstance(document, dict):
        raise EngineUnavailableError(f"the engine answered GET {path} with HTTP {status} and no JSON object")
    return document

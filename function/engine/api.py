"""ComfyUI's HTTP routes that a run needs, one method each."""

from __future__ import annotations

import enum
import http.client
import json
import time
from typing import TYPE_CHECKING, Any

from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from function.workflow import Workflow

_REQUEST_SECONDS = 5.0
_KEPT_SECONDS = 1.0
_OK = 200
_NOT_FOUND = 404


class RunState(enum.Enum):
    """Where a run is, as far as the engine knows."""

    WAITING = "queued or running"
    ENDED = "in the history"
    UNKNOWN = "neither"


class EngineApi:
    """HTTP to one engine.

    A connection serves the next request only if that comes within a second: servers keep idle ones for longer than that
    (uvicorn for 5 s, aiohttp for 75 s), so that none goes stale while a request is on its way.

    Every method raises EngineUnavailableError when the engine does not answer, or answers with what isn't its protocol.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            self._idle.pop()[1].close()

    def submit(
        self, workflow: Workflow, *, prompt_id: str, client_id: str, timeout_seconds: float
    ) -> tuple[int, object]:
        """POST /prompt: the status and the answer, as JSON where it is JSON, else as text."""
        body = {"prompt": workflow, "prompt_id": prompt_id, "client_id": client_id}
        status, payload = self._request("POST", "/prompt", body, timeout_seconds=timeout_seconds)
        try:
            return status, json.loads(payload)
        except ValueError:
            return status, payload.decode("utf-8", "replace")

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The record of a run that ended; None while it is queued or runs, and for an unknown one."""
        entry = self._get(f"/history/{prompt_id}").get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def state(self, prompt_id: str) -> RunState:
        """Where a run is; the history alone can't tell a queued run from an unknown one."""
        if self.history(prompt_id) is not None:
            return RunState.ENDED
        if self._is_queued(prompt_id):
            return RunState.WAITING
        # It may have ended between the two looks.
        return RunState.UNKNOWN if self.history(prompt_id) is None else RunState.ENDED

    def interrupt(self, prompt_id: str) -> None:
        """Ask for the end of a run, queued or running; the engine says nothing about whether it took effect."""
        self._post("/queue", {"delete": [prompt_id]})
        self._post("/interrupt", {"prompt_id": prompt_id})

    def free(self) -> None:
        """Ask the engine to unload its models and to forget cached results; it does so before its next run."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def object_info(self, *, timeout_seconds: float) -> dict[str, Any]:
        """Every node class with its inputs and outputs."""
        return self._get("/object_info", timeout_seconds=timeout_seconds)

    def node_replacements(self) -> dict[str, Any]:
        """Classes that are gone, with what the engine puts in their place; none where it knows no such thing yet."""
        status, payload = self._request("GET", "/node_replacements")
        return {} if status == _NOT_FOUND else self._object("/node_replacements", status, payload)

    def _is_queued(self, prompt_id: str) -> bool:
        queue = self._get("/queue")
        items = [*queue.get("queue_running", ()), *queue.get("queue_pending", ())]
        return any(item[1] == prompt_id for item in items)

    def _get(self, path: str, *, timeout_seconds: float = _REQUEST_SECONDS) -> dict[str, Any]:
        return self._object(path, *self._request("GET", path, timeout_seconds=timeout_seconds))

    def _object(self, path: str, status: int, payload: bytes) -> dict[str, Any]:
        try:
            document = json.loads(payload)
        except ValueError:
            document = None
        if status != _OK or not isinstance(document, dict):
            raise EngineUnavailableError(f"the engine answered GET {path} with HTTP {status} and no JSON object")
        return document

    def _post(self, path: str, body: dict[str, Any]) -> None:
        status, _payload = self._request("POST", path, body)
        if status != _OK:
            raise EngineUnavailableError(f"the engine answered POST {path} with HTTP {status}")

    def _request(
        self, method: str, path: str, body: object = None, *, timeout_seconds: float = _REQUEST_SECONDS
    ) -> tuple[int, bytes]:
        connection = self._connection(timeout_seconds)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            response = connection.getresponse()
            answer = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise EngineUnavailableError(f"the engine does not answer {method} {path}: {error}") from error
        self._idle.append((time.monotonic(), connection))
        return answer

    def _connection(self, timeout_seconds: float) -> http.client.HTTPConnection:
        """A kept connection, or a new one: `http.client` connects again where the server wanted to close it."""
        since, connection = (
            self._idle.pop() if self._idle else (0.0, http.client.HTTPConnection(self._host, self._port))
        )
        if time.monotonic() - since > _KEPT_SECONDS:
            connection.close()
        connection.timeout = timeout_seconds
        if connection.sock:
            connection.sock.settimeout(timeout_seconds)
        return connection

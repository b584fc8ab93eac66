"""A client of a running function: send a job as a CloudEvent, watch it, fetch its files."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import urllib3

from events import JOB_REQUESTED, to_structured
from function.errors import ComfyfnError, EngineUnavailableError
from function.job import derived_job_id
from function.jobs.manifest import to_timestamp, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = "/comfyfn/cli"
_POLL_SECONDS = 0.2
_CHUNK_BYTES = 1024**2


class FunctionAnswerError(ComfyfnError):
    """The function answered with an error instead of a reply event."""

    code = "function_answer"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One `dev.comfyfn.job.requested` event, ready to be sent, also more than once.

    Attributes:
        job_id: The id that the function derives from the event's source and id.
        headers: HTTP headers of the structured event.
        body: The event.
    """

    job_id: str
    headers: dict[str, str]
    body: bytes


def to_job_event(document: dict[str, Any], *, event_id: str) -> JobEvent:
    """Wrap a job document into an event."""
    headers, body = to_structured(
        JOB_REQUESTED, id=event_id, source=SOURCE, subject="", time=to_timestamp(utc_now()), data=document
    )
    return JobEvent(derived_job_id(SOURCE, event_id), headers, body)


class FunctionClient:
    """Talks to one function.

    Args:
        url: Its base URL.
        token: One of its API_TOKENS; "" where it has none.
        timeout_seconds: How long a job may take to be answered.
    """

    def __init__(self, url: str, *, token: str = "", timeout_seconds: float = 3600) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=timeout_seconds), retries=urllib3.Retry(0, redirect=3)
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def send(self, event: JobEvent) -> bytes:
        """Send an event and return the reply event as it came.

        Raises:
            FunctionAnswerError: The function refused or failed, in its own words.
        """
        answer = self._request("POST", "/", body=event.body, headers=event.headers)
        if answer.status != HTTPStatus.OK:
            raise FunctionAnswerError(_error_line(answer))
        return answer.data

    def send_and_watch(self, event: JobEvent, on_progress: Callable[[dict[str, Any]], None]) -> bytes:
        """Send an event; call `on_progress` with the job's status document while it is worked on."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(event.job_id, on_progress, done))
        watcher.start()
        try:
            return self.send(event)
        finally:
            done.set()
            watcher.join()

    def _watch(self, job_id: str, on_progress: Callable[[dict[str, Any]], None], done: threading.Event) -> None:
        while not done.wait(_POLL_SECONDS):
            try:
                answer = self._request("GET", f"/jobs/{job_id}")
            except ComfyfnError:
                continue
            if answer.status == HTTPStatus.OK:
                on_progress(json.loads(answer.data))

    def template(self, name: str) -> dict[str, Any]:
        """What the function says of one of its templates.

        Raises:
            FunctionAnswerError: It has none of this name, or can't read it.
        """
        answer = self._request("GET", f"/workflow/{quote(name)}")
        if answer.status != HTTPStatus.OK:
            raise FunctionAnswerError(_error_line(answer))
        document: dict[str, Any] = json.loads(answer.data)
        return document

    def fetch_output(self, manifest: dict[str, Any], output: dict[str, Any], path: Path) -> None:
        """Write one stored output file to `path`."""
        parts = [manifest["job_id"], str(manifest["attempt"]), output["subfolder"], output["filename"]]
        key = quote("/".join(part for part in parts if part))
        answer = self._request("GET", f"/outputs/{key}", preload_content=False)
        try:
            if answer.status != HTTPStatus.OK:
                raise FunctionAnswerError(f"{output['filename']}: {_error_line(answer)}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                for chunk in answer.stream(_CHUNK_BYTES):
                    target.write(chunk)
        finally:
            answer.release_conn()

    def ready(self) -> bool:
        """Whether the function answers `/ready` with 200."""
        try:
            return self._request("GET", "/ready").status == HTTPStatus.OK
        except EngineUnavailableError:
            return False

    def _request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        **arguments: Any,  # noqa: ANN401  (urllib3's)
    ) -> urllib3.BaseHTTPResponse:
        try:
            headers = {**(headers or {}), **self._headers}
            return self._http.request(method, self._url + path, headers=headers, **arguments)
        except urllib3.exceptions.HTTPError as error:
            raise EngineUnavailableError(
                f"no function answers at {self._url}; start one with `comfyfn serve` or use --local"
            ) from error


def _error_line(answer: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(json.loads(answer.data)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status}"

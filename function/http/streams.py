"""`GET /jobs/<job_id>/events`: what happens to a job, as server-sent events from any pod.

A stream begins with the state as it is and has no history: whoever comes back after a lost connection misses nothing
that still counts. It ends after the job's end, when the pod shuts down, or before a proxy in front would cut it off;
then the client connects anew, as browsers do by themselves.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from flask import Response

from function.admission import MAX_STREAMS
from function.errors import ComfyfnError, QueueFullError
from function.http.jobs import look, to_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Request

    from function.jobs.service import JobStatus
    from function.lifecycle import Function

STREAM_SECONDS = 280.0
"""Shorter than the 300 s after which Knative's proxies cut a response off."""

_LOOK_SECONDS = 1.0
_NEAR_LOOK_SECONDS = 0.2
_KEEPALIVE_SECONDS = 15.0

_slots = threading.BoundedSemaphore(MAX_STREAMS)


def follow(function: Function, _request: Request, job_id: str) -> Response:
    """Events `status` and `progress`, one `output` for each file, and a last `status` with the manifest."""
    status = look(function, job_id)
    if not _slots.acquire(blocking=False):
        raise QueueFullError(f"{MAX_STREAMS} streams are open in this pod: ask for /jobs/{job_id} instead")
    response = Response(_events(function, status), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep events back
    response.call_on_close(_slots.release)
    return response


def _events(function: Function, status: JobStatus) -> Iterator[bytes]:
    ends_at = time.monotonic() + STREAM_SECONDS
    told: dict[str, Any] = {}
    said_at = 0.0
    while True:
        for name, data in _news(status, told):
            said_at = time.monotonic()
            yield _frame(name, data)
        if status.result or function.admission.draining or time.monotonic() >= ends_at:
            return
        if time.monotonic() - said_at >= _KEEPALIVE_SECONDS:
            said_at = time.monotonic()
            yield b": keepalive\n\n"
        time.sleep(_NEAR_LOOK_SECONDS if function.progress(status.job_id) else _LOOK_SECONDS)
        status = _look_again(function, status)


def _look_again(function: Function, status: JobStatus) -> JobStatus:
    try:
        if near := function.progress(status.job_id):
            return status.seen(near)
        return look(function, status.job_id)
    except ComfyfnError:  # storage is away for a moment: the last that was known still is
        return status


def _news(status: JobStatus, told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What has changed since the last call; outputs come before the status that ends the stream."""
    document = to_document(status)
    if document["progress"] and document["progress"] != told.get("progress"):
        told["progress"] = document["progress"]
        yield "progress", document["progress"]
    for output in document["result"]["outputs"] if document["result"] else ():
        yield "output", output
    state = (document["status"], document["queue_position"])
    if state != told.get("state"):
        told["state"] = state
        yield "status", document


def _frame(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()

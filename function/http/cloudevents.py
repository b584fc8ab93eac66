"""`POST /`: CloudEvents in, one structured CloudEvent back.

A broker takes a 2xx with a CloudEvent as the reply event, an empty 2xx as success without one, 404, 408, 409, 429 and
5xx as "deliver again", and any other 4xx as "never again" (Knative's data plane contract).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from events import (
    JOB_COMPLETED,
    JOB_FAILED,
    JOB_REQUESTED,
    MalformedEventError,
    parse_cloudevent,
    to_structured,
)
from function.errors import InvalidRequestError
from function.http.responses import connection_of, read_body, to_response
from function.job import derived_job_id, parse_job_document
from function.jobs.manifest import to_manifest

if TYPE_CHECKING:
    from flask import Request, Response

    from events import Event
    from function.job import JobResult
    from function.lifecycle import Function

REPLY_SOURCE = "/comfyfn"


def receive(function: Function, request: Request) -> Response:
    """Run the job that an event asks for and reply with its completed or failed event.

    A redelivered event is answered from the stored manifest, byte for byte as before.
    """
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        event = _parse(request, body)
        if event.type != JOB_REQUESTED:
            return to_response(b"", status=204)
        job_id = derived_job_id(event.source, event.id)
        job = parse_job_document(event.data, job_id=job_id, templates=function.templates)
        result = function.handle(job, connection=connection_of(request))
    return _reply(result)


def _parse(request: Request, body: bytes) -> Event:
    try:
        return parse_cloudevent(dict(request.headers), body)
    except MalformedEventError as error:
        raise InvalidRequestError(str(error)) from error


def _reply(result: JobResult) -> Response:
    kind = JOB_COMPLETED if result.status == "completed" else JOB_FAILED
    headers, body = to_structured(
        kind,
        id=f"{result.job_id}.{result.status}",
        source=REPLY_SOURCE,
        subject=result.job_id,
        time=result.finished_at,
        data=to_manifest(result),
    )
    return to_response(body, headers=headers)

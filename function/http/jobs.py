"""`/jobs`: submit, show, list and cancel jobs, from any pod."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from function.errors import InvalidRequestError, JobMissingError
from function.http.bodies import parse_json, read_body
from function.http.responses import check_json, json_response
from function.http.submitting import accepted, identify
from function.job import JOB_ID, parse_job_document
from function.jobs.manifest import to_manifest, to_timestamp

if TYPE_CHECKING:
    from flask import Request, Response

    from function.jobs.service import JobStatus
    from function.lifecycle import Function

_PAGE = 20
_MAX_PAGE = 100


def submit(function: Function, request: Request) -> Response:
    """Record the job of a job document and answer 202 at once."""
    check_json(request)
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        job_id, digest = identify(request, body)
        job = parse_job_document(parse_json(body), job_id=job_id, templates=function.templates)
        job = replace(job, asynchronous=True, request_sha256=digest)
        function.submit(job)
    return accepted(job)


def show(function: Function, _request: Request, job_id: str) -> Response:
    """One job, whichever pod runs it."""
    return json_response(to_document(look(function, job_id)))


def show_page(function: Function, request: Request) -> Response:
    """Jobs, the newest first: `?limit=` of them, `?after=` the `next` of the page before, perhaps of one `?status=`.

    A page is filtered after it was read, so that it may hold fewer than `limit` although `next` says that there are
    more.
    """
    limit = _limit(request.args.get("limit", str(_PAGE)))
    wanted = request.args.get("status", "")
    found, following = function.jobs.page(function.progress, limit=limit, after=_after(request.args.get("after", "")))
    documents = [to_document(status) for status in found]
    shown = [document for document in documents if wanted in {"", document["status"]}]
    return json_response({"jobs": shown, "next": following or None})


def cancel(function: Function, _request: Request, job_id: str) -> Response:
    """End a job: at once if no pod runs it, else at that pod's next sign of life; no effect on one that has ended."""
    function.cancel(checked_id(job_id))
    return json_response(to_document(look(function, job_id)))


def look(function: Function, job_id: str) -> JobStatus:
    """The status of a job, as of now if this pod has it, else as of its pod's last sign of life.

    Raises:
        JobMissingError: There is no such job.
    """
    return function.jobs.status(checked_id(job_id), near=function.progress(job_id))


def to_document(status: JobStatus) -> dict[str, Any]:
    """The JSON form of a job's status."""
    return {
        "job_id": status.job_id,
        "status": status.status,
        "created_at": to_timestamp(status.created_at),
        "attempts": status.attempts,
        "progress": asdict(status.progress) if status.progress else None,
        "queue_position": status.queue_position,
        "result": to_manifest(status.result) if status.result else None,
    }


def checked_id(job_id: str) -> str:
    """The id if it can be one: ids are parts of keys.

    Raises:
        JobMissingError: It can't.
    """
    if not JOB_ID.fullmatch(job_id):
        raise JobMissingError("there is no such job: ids have 32 hexadecimal digits")
    return job_id


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= _MAX_PAGE:
        raise InvalidRequestError(f"limit: expected a whole number from 1 to {_MAX_PAGE}")
    return int(text)


def _after(text: str) -> str:
    if text and not JOB_ID.fullmatch(text.rpartition("-")[2]):
        raise InvalidRequestError("after: expected the `next` of a page")
    return text

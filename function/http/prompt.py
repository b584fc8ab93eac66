"""`POST /prompt`: run a workflow and get the files in the answer, as clients of comfyui-api do, or just the file."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from function.answers import request_members, to_document
from function.errors import InvalidWorkflowError
from function.http.bodies import parse_json, read_body
from function.http.prompt_request import PromptRequest, ignored_fields
from function.http.responses import check_json, to_response
from function.http.submitting import accepted, completed, identify, read_job
from function.job import validated
from function.outputs.stored import with_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Request, Response

    from function.job import Job, JobResult, Output
    from function.lifecycle import Function

_JSON = "application/json"


def run(function: Function, request: Request) -> Response:
    """Run one workflow to its end; nothing is stored, the answer carries every output file in base64.

    A single file is the answer itself where `Accept` prefers its media type to JSON (RFC 9110, section 12.5.1).
    With a webhook, an upload that nobody waits for, or `Prefer: respond-async`, the answer is 202 at once. Such a job
    is stored, and so is one with an `Idempotency-Key`.
    """
    check_json(request)
    with function.admitted(), located("prompt"):
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        document = parse_json(body)
        wanted = validated(PromptRequest, document)
        identity = identify(request, body)
        job, warnings = read_job(request, identity, wanted, wanted.prompt, settings=function.settings)
        return answer(function, request, job, warnings=[*ignored_fields(document, wanted), *warnings])


@contextmanager
def located(place: str) -> Iterator[None]:
    """Have an error about the whole workflow say where the request has it."""
    try:
        yield
    except InvalidWorkflowError as error:
        error.details.setdefault("location", place)
        raise


def answer(function: Function, request: Request, job: Job, *, warnings: list[str]) -> Response:
    """Run a job, or record it where its sender doesn't wait; the answer, with what is to be said beside it."""
    if job.asynchronous:
        function.submit(job)
        said = {"warnings": warnings} if warnings else {}
        return accepted(job, **request_members(job), status="ok", **said)
    result = _ended(function, job, request)
    if file := _preferred_file(request, job, result):
        return to_response(file.data or b"", headers={"Content-Type": file.media_type})
    files = [output.data or b"" for output in result.outputs]
    document = to_document(job, result, files, warnings=warnings)
    return to_response(document, headers={"Content-Type": _JSON})


def _preferred_file(request: Request, job: Job, result: JobResult) -> Output | None:
    """The job's only file, if its sender would rather have that than a document around it."""
    if job.upload or len(result.outputs) != 1:
        return None
    (output,) = result.outputs
    preferred = request.accept_mimetypes.best_match([_JSON, output.media_type], default=_JSON)
    return output if preferred == output.media_type else None


def _ended(function: Function, job: Job, request: Request) -> JobResult:
    """The job's result, with the bytes of its files unless they were uploaded; raises as `completed`."""
    result = completed(function, job, request)
    if not job.stored or job.upload:
        return result
    store = function.jobs.results
    return replace(result, outputs=tuple(with_data(store, result, output) for output in result.outputs))

"""`POST /prompt`: run a workflow and get the files in the answer, as clients of comfyui-api do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from function.errors import error_of
from function.http.bodies import parse_json, read_body
from function.http.responses import connection_of, json_response
from function.http.streamed import DocumentWithFiles
from function.http.submitting import accepted, identify, read_job
from function.job import validated
from function.outputs.stored import with_data

if TYPE_CHECKING:
    from flask import Request, Response

    from function.job import Job, JobResult
    from function.lifecycle import Function


class PromptRequest(BaseModel):
    """The request body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: dict[str, Any] = Field(description="The workflow in ComfyUI's API format.")
    id: Annotated[str, Field(max_length=256, description="The caller's own name for the job.")] = ""


def run(function: Function, request: Request) -> Response:
    """Run one workflow to its end; nothing is stored, the answer carries every output file in base64.

    With `Prefer: respond-async` or an `Idempotency-Key` the job is stored.
    """
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        wanted = validated(PromptRequest, parse_json(body))
        identity = identify(request, body)
        return answer(function, request, read_job(request, identity, wanted.prompt, label=wanted.id))


def answer(function: Function, request: Request, job: Job, **members: Any) -> Response:  # noqa: ANN401  (JSON is any value)
    """Run a job, or record it where its sender doesn't wait; the answer, with more members in it."""
    if job.asynchronous:
        function.submit(job)
        return accepted(job, id=job.label or job.job_id, **members)
    return json_response(to_answer(job, _ended(function, job, request), **members))


def _ended(function: Function, job: Job, request: Request) -> JobResult:
    """The job's result with the bytes of its files.

    Raises:
        ComfyfnError: It failed, now or when the same request came before.
    """
    result = function.handle(job, connection=connection_of(request))
    if result.error:
        raise error_of(result.error)
    if not job.stored:
        return result
    store = function.jobs.results
    return replace(result, outputs=tuple(with_data(store, result, output) for output in result.outputs))


def to_answer(job: Job, result: JobResult, **members: Any) -> DocumentWithFiles:  # noqa: ANN401  (JSON is any value)
    """The answer's members as comfyui-api has them: `images` and `filenames` run side by side; stats in ms."""
    milliseconds = {stage: round(seconds * 1000) for stage, seconds in result.timings.items()}
    after: dict[str, Any] = {
        "filenames": [output.filename for output in result.outputs],
        "stats": {
            "comfy_execution": {"duration": milliseconds["executing"]},
            "preprocess_time": milliseconds["models"] + milliseconds["inputs"],
            "comfy_round_trip_time": milliseconds["executing"],
            "postprocess_time": milliseconds["storing"],
            "total_time": milliseconds["total"],
        },
    }
    if result.texts:
        after["texts"] = result.texts
    images = [output.data or b"" for output in result.outputs]
    before = {"id": job.label or job.job_id, "prompt": job.workflow}
    return DocumentWithFiles(before, "images", images, after | members)

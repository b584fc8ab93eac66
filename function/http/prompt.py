"""`POST /prompt`: run a workflow and get the files in the answer, as clients of comfyui-api do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from function.http.responses import connection_of, json_response, parse_json, read_body
from function.http.streamed import DocumentWithFiles
from function.job import Job, JobResult, random_job_id, validated

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function


class PromptRequest(BaseModel):
    """The request body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: dict[str, Any] = Field(description="The workflow in ComfyUI's API format.")
    id: Annotated[str, Field(max_length=256, description="The caller's own name for the job.")] = ""


def run(function: Function, request: Request) -> Response:
    """Run one workflow to its end; nothing is stored, the answer carries every output file in base64."""
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        wanted = validated(PromptRequest, parse_json(body))
        del body
        job = Job(job_id=random_job_id(), workflow=wanted.prompt, label=wanted.id, stored=False, interactive=True)
        return json_response(to_answer(job, function.handle(job, connection=connection_of(request))))


def to_answer(job: Job, result: JobResult) -> DocumentWithFiles:
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
    return DocumentWithFiles({"id": job.label or job.job_id, "prompt": job.workflow}, "images", images, after)

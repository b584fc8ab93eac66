"""What each route takes and answers: the OpenAPI document's part that is written by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from function.http import answer_models as answers
from function.http.interrupt import InterruptRequest
from function.http.models import DownloadRequest
from function.http.openai_request import ImageFormRequest, ImageRequest
from function.http.prompt_request import PromptRequest
from function.http.workflows import WorkflowRequest
from function.job import JobDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of an operation.

    Attributes:
        text: When it comes.
        schema: Of its JSON; None for another media type, or for none.
        media_type: "" for an answer without a body.
        file_types: Media types that it has where the request's `Accept` prefers them.
        headers: What its headers say beside those of every answer.
        links: Ids of operations that take the `job_id` of its body.
    """

    text: str
    schema: type[BaseModel] | dict[str, Any] | None = None
    media_type: str = _JSON
    file_types: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route.

    Attributes:
        summary: One line.
        answers: By status, without errors.
        errors: Statuses of errors beside 401 and 500.
        body: The model that checks the request's JSON, or a schema.
        body_types: Media types of the body.
        parameters: Schemas of query parameters, path segments and headers, by place and name.
        example: A body that does something.
    """

    summary: str
    answers: Mapping[int, Answer]
    errors: tuple[int, ...] = ()
    body: type[BaseModel] | dict[str, Any] | None = None
    body_types: tuple[str, ...] = (_JSON,)
    parameters: Mapping[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    example: object = None


ERRORS = {
    400: "The request is not what the route takes.",
    401: "The request brings no token of API_TOKENS.",
    404: "There is nothing of this name.",
    409: "The same job is running.",
    413: "The body is larger than MAX_BODY_SIZE_MB.",
    415: "The body is not of a media type that the route takes.",
    422: "The job can't succeed as it is, or the Idempotency-Key came with another request.",
    429: "As much waits or runs as this pod takes.",
    500: "A mistake of ours; the log has the details.",
    501: "This service doesn't do that.",
    503: "The engine or storage is away, or the pod shuts down.",
    502: "An upload of the job's outputs failed.",
    504: "The job's deadline passed.",
}
"""What an error's status means."""

RETRIED = frozenset({409, 429, 503})
"""Errors that say in `Retry-After` when to ask again."""

_KEY = {
    ("header", "Idempotency-Key"): {
        "type": "string",
        "pattern": "^[!-~]{1,255}$",
        "description": "The same request under the same key is the same job.",
    }
}
_SUBMITS = _KEY | {
    ("header", "Prefer"): {"type": "string", "description": "`respond-async`: 202 at once, the result is asked for."}
}
_JOB_ID = {("path", "job_id"): {"type": "string", "description": "The job: 32 hexadecimal digits."}}
_NAME = {("path", "name"): {"type": "string", "description": "The template's name; it may hold slashes."}}
_PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 4711}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "picture"}},
}
_ACCEPTED = Answer(
    "Recorded; it will be run.",
    answers.AcceptedJob,
    headers={"Location": "Where to ask for the job.", "Preference-Applied": "`respond-async`."},
    links=("get_jobs_job_id", "get_jobs_job_id_events", "post_jobs_job_id_cancel"),
)
_DONE = Answer(
    "Done; the files are in it. A single file is the answer itself where `Accept` prefers its media type.",
    answers.PromptAnswer,
    file_types=("image/*", "video/*", "audio/*", "application/octet-stream"),
)
_RUNS = {200: _DONE, 202: _ACCEPTED}
_RUN_ERRORS = (400, 409, 413, 415, 422, 429, 501, 502, 503, 504)
_EVENT = {"type": ["object", "array"], "description": "A CloudEvent of any mode, or a notice of an upload."}
_EVENT_TYPES = (_JSON, "application/cloudevents+json")
_MADE = {200: Answer("The images.", answers.Images)}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/"): Operation(
        "Take a CloudEvent or a notice of an upload",
        {
            200: Answer("The job's end.", {"type": "object"}, media_type="application/cloudevents+json"),
            202: Answer("Jobs are recorded.", media_type=""),
            204: Answer("The event asks for no job.", media_type=""),
        },
        errors=(400, 404, 409, 413, 422, 429, 501, 503),
        body=_EVENT,
        body_types=_EVENT_TYPES,
    ),
    ("POST", "/prompt"): Operation(
        "Run a workflow",
        _RUNS,
        errors=_RUN_ERRORS,
        body=PromptRequest,
        parameters=_SUBMITS,
        example={"prompt": _PICTURE},
    ),
    ("POST", "/interrupt"): Operation(
        "End a job",
        {
            200: Answer("It was waiting or running.", answers.Interrupted),
            404: Answer("It has ended, or nobody knows it.", answers.Interrupted),
        },
        errors=(400, 413, 415, 501, 503),
        body=InterruptRequest,
    ),
    ("GET", "/workflow"): Operation(
        "List the templates", {200: Answer("Their names.", answers.TemplateNames)}, errors=(503,)
    ),
    ("GET", "/workflow/{name}"): Operation(
        "Describe a template",
        {200: Answer("What it takes.", answers.TemplateDescription)},
        errors=(404, 422, 503),
        parameters=_NAME,
    ),
    ("POST", "/workflow/{name}"): Operation(
        "Run a template",
        _RUNS,
        errors=(*_RUN_ERRORS, 404),
        body=WorkflowRequest,
        parameters=_NAME | _SUBMITS,
    ),
    ("GET", "/models"): Operation(
        "List the models that the engine can use",
        {
            200: Answer(
                "File names by folder.",
                {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
            )
        },
    ),
    ("POST", "/download"): Operation(
        "Bring a model",
        {
            200: Answer("It is there (`wait`).", answers.Download),
            202: Answer("It is being brought.", answers.Download),
        },
        errors=(400, 413, 415, 422, 429, 501, 503),
        body=DownloadRequest,
    ),
    ("POST", "/jobs"): Operation(
        "Submit a job",
        {202: _ACCEPTED},
        errors=(400, 413, 415, 422, 429, 501, 503),
        body=JobDocument,
        parameters=_KEY,
        example={"workflow": _PICTURE},
    ),
    ("GET", "/jobs"): Operation(
        "List jobs",
        {200: Answer("A page, the newest first.", answers.JobList)},
        errors=(400, 503),
        parameters={
            ("query", "limit"): {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            ("query", "status"): {"type": "string", "description": "Only jobs in this state."},
            ("query", "after"): {
                "type": "string",
                "pattern": "^$|^([^-]*-)*[0-9a-f]{32}$",
                "description": "The `next` of the page before.",
            },
        },
    ),
    ("GET", "/jobs/{job_id}"): Operation(
        "Show a job",
        {200: Answer("Its state.", answers.JobState)},
        errors=(404, 503),
        parameters=_JOB_ID,
    ),
    ("GET", "/jobs/{job_id}/events"): Operation(
        "Follow a job",
        {200: Answer("Server-sent events `status`, `progress` and `output`.", media_type="text/event-stream")},
        errors=(404, 429, 503),
        parameters=_JOB_ID,
    ),
    ("POST", "/jobs/{job_id}/cancel"): Operation(
        "Cancel a job",
        {200: Answer("Its state.", answers.JobState)},
        errors=(404, 503),
        parameters=_JOB_ID,
    ),
    ("GET", "/outputs/{key}"): Operation(
        "Fetch a stored output file",
        {
            200: Answer("The file.", media_type="*/*"),
            302: Answer("The file is in S3.", media_type="", headers={"Location": "A link that expires."}),
        },
        errors=(404, 503),
        parameters={("path", "key"): {"type": "string", "description": "`<job_id>/<attempt>/<file>`"}},
    ),
    ("POST", "/v1/images/generations"): Operation(
        "Make images, as OpenAI does",
        _MADE,
        errors=(*_RUN_ERRORS, 404),
        body=ImageRequest,
        parameters=_KEY,
    ),
    **{
        ("POST", f"/v1/images/{name}"): Operation(
            summary,
            _MADE,
            errors=(*_RUN_ERRORS, 404),
            body=ImageFormRequest,
            body_types=("multipart/form-data",),
            parameters=_KEY,
        )
        for name, summary in (
            ("edits", "Edit an image, as OpenAI does"),
            ("variations", "Vary an image, as OpenAI does"),
        )
    },
    ("GET", "/v1/models"): Operation(
        "List the templates as models", {200: Answer("All.", answers.Models)}, errors=(503,)
    ),
    ("GET", "/v1/models/{name}"): Operation(
        "Show a template as a model",
        {200: Answer("The model.", answers.Model)},
        errors=(404, 422, 503),
        parameters=_NAME,
    ),
    **{
        ("GET", path): Operation("This document", {200: Answer("OpenAPI.", {"type": "object"})})
        for path in ("/openapi.json", "/docs/json")
    },
    ("GET", "/docs"): Operation(
        "This document as a page", {200: Answer("A page that needs nothing else.", media_type="text/html")}
    ),
    ("GET", "/health"): Operation(
        "Is the function alive?",
        {200: Answer("It is.", answers.State), 500: Answer("It is not: replace it.", answers.State)},
    ),
    ("GET", "/ready"): Operation(
        "Does the function take jobs?",
        {200: Answer("It does.", answers.State), 503: Answer("Not now.", answers.State)},
    ),
    ("GET", "/metrics"): Operation(
        "Everything that is counted", {200: Answer("Prometheus' text format.", media_type="text/plain")}
    ),
}
"""By method and path."""

"""The job: what one request or event asks for, and what came of it."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from function.errors import InvalidRequestError, TemplateMissingError
from function.handover import WebhookTarget
from function.request_credentials import RequestCredentials, to_credentials
from function.sources import parse_source_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

    from function.credentials import UrlCredential
    from function.errors import ComfyfnError
    from function.handover import Conversion, UploadTarget

_Model = TypeVar("_Model", bound=BaseModel)

JOB_ID = re.compile(r"[0-9a-f]{32}")


def random_job_id() -> str:
    """Identity of a job that nobody can name twice: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def derived_job_id(*parts: str) -> str:
    """Identity of a job that is delivered more than once: the same parts give the same 32 hexadecimal digits.

    For an event the parts are its source and id, which CloudEvents declares unique together.
    """
    framed = b"".join(len(part.encode()).to_bytes(8) + part.encode() for part in parts)
    return hashlib.sha256(framed).hexdigest()[:32]


class Webhook(BaseModel):
    """Who is told of the job's end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[
        str,
        Field(max_length=2048, pattern="^https?://", description="Where the completed or failed event is sent."),
    ]


class JobDocument(BaseModel):
    """What a caller sends: the data of `dev.comfyfn.job.requested`, an uploaded job document."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "oneOf": [{"required": ["workflow"]}, {"required": ["template"]}],
            "dependentRequired": {"parameters": ["template"]},
        },
    )

    workflow: dict[str, Any] = Field(
        default_factory=dict, description="The workflow in ComfyUI's API format: node id to node."
    )
    template: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            description="In place of a workflow: the name of a template under WORKFLOWS_URL.",
        ),
    ] = ""
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Values of the template's parameters, by name."
    )
    label: Annotated[str, Field(max_length=256, description="The caller's own name for the job; kept, not used.")] = ""
    deadline_seconds: Annotated[
        int | None, Field(ge=1, description="Time the job may take; default and upper limit: DEADLINE_SECONDS.")
    ] = None
    webhook: Annotated[Webhook | None, Field(description="Who is told of the job's end; nobody if absent.")] = None
    credentials: RequestCredentials = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_source(self) -> JobDocument:
        given = self.model_fields_set
        if ("workflow" in given) == ("template" in given):
            raise PydanticCustomError("source", "expected a workflow or the name of a template, one of the two")
        if "parameters" in given and "workflow" in given:
            raise PydanticCustomError("source", "parameters are a template's; set the inputs of the workflow itself")
        return self


@dataclass(frozen=True, slots=True)
class FilledTemplate:
    """A template with values in it, ready to be a job.

    Attributes:
        workflow: The graph with the values.
        parameters: Every value, defaults included.
        preloads: Keys of models that must be there and that the graph does not name.
    """

    workflow: dict[str, Any]
    parameters: dict[str, Any]
    preloads: tuple[str, ...] = ()


class Templates(Protocol):
    """Templates by name."""

    def fill(self, name: str, parameters: Mapping[str, Any], *, job_id: str) -> FilledTemplate:
        """Put values into a template's workflow; the same job gets the same random ones.

        Raises:
            InvalidRequestError: A value that the template does not take, or one that is missing.
            TemplateMissingError: There is no such template.
            TemplateInvalidError: Its file is wrong.
            StorageUnavailableError: Storage does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work, parsed and identified; not yet checked against models or inputs.

    Attributes:
        job_id: 32 hexadecimal digits, ours.
        workflow: The graph as the caller sent it: API format, checked by `workflow.parse_workflow`.
        label: The caller's own name for it.
        deadline_seconds: Time it may take from admission to stored result; None: the setting's.
        stored: Whether records, outputs and manifest go to RESULTS_URL; otherwise the caller gets the bytes.
        interactive: Whether somebody waits for the answer: such jobs get the GPU before the others.
        asynchronous: Whether the sender was answered when the job was recorded, so that we must see it through.
        webhooks: Who is told of its end.
        request_sha256: Digest of the request behind an Idempotency-Key; "" without one.
        created_at: When it was recorded, ISO 8601 in UTC; "" before that.
        preloads: Keys below MODELS_URL of models that must be there and that the graph does not name.
        credentials: What requests to the URLs in the graph carry. They are never stored, shown or logged.
        convert_output: What its images are turned into; None: they stay as the engine wrote them.
        upload: Where its outputs are uploaded before it counts as completed; None: nowhere.
        request: The request's other fields, as answers to clients of comfyui-api repeat them; never a credential.
    """

    job_id: str
    workflow: dict[str, Any]
    label: str = ""
    deadline_seconds: int | None = None
    stored: bool = True
    interactive: bool = False
    asynchronous: bool = False
    webhooks: tuple[WebhookTarget, ...] = ()
    request_sha256: str = ""
    created_at: str = ""
    preloads: tuple[str, ...] = ()
    credentials: tuple[UrlCredential, ...] = field(default=(), repr=False)
    convert_output: Conversion | None = None
    upload: UploadTarget | None = None
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def outlives_request(self) -> bool:
        """Whether we must see it through to its end, whatever becomes of the request that asked for it."""
        return self.asynchronous or bool(self.webhooks)


@dataclass(frozen=True, slots=True)
class Output:
    """One output file.

    Attributes:
        node_id: The node that wrote it.
        kind: ComfyUI's key for it: `images`, `audio`, `gifs`, ... A video may arrive under `images`: go by media_type.
        filename: Its name without the job's own prefix.
        subfolder: Its folder below the job's output directory, "" for none.
        media_type: By the file's extension.
        size_bytes: Length.
        sha256: Hexadecimal digest of the bytes; "" where it was not stored.
        width: Pixels, for images that were stored; None otherwise.
        height: Pixels, for images that were stored; None otherwise.
        url: Where it is stored; "" where it was not.
        data: The bytes themselves when the caller gets them; None when they are stored.
    """

    node_id: str
    kind: str
    filename: str
    subfolder: str
    media_type: str
    size_bytes: int
    sha256: str = ""
    width: int | None = None
    height: int | None = None
    url: str = ""
    data: bytes | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        """Its name with its folder, which no other output of the job has."""
        return f"{self.subfolder}/{self.filename}" if self.subfolder else self.filename


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended; what every edge renders and the manifest holds.

    Attributes:
        job_id: The job.
        status: `completed` or `failed`.
        attempt: Which attempt ended it, counted from 1; 0 if it failed before one was begun.
        label: The caller's own name for the job.
        finished_at: UTC, ISO 8601 with milliseconds and `Z`.
        outputs: Output files in the order of node ids and files; empty when failed.
        texts: Text outputs: node id to its strings.
        error: `{"code", "message", ...details}` when failed, else None.
        timings: Seconds per stage: `models`, `inputs`, `executing`, `storing`, `uploading` if there is one, `total`.
        execution: When the engine ran it, in ms since 1970: `start`, `end`, and `nodes`, node id to its start.
    """

    job_id: str
    status: str
    attempt: int
    label: str
    finished_at: str
    outputs: tuple[Output, ...] = ()
    texts: dict[str, list[str]] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)


def failed_result(
    job: Job, attempt: int, error: ComfyfnError, *, finished_at: str, timings: dict[str, float] | None = None
) -> JobResult:
    """The result of a job that ended with an error."""
    return JobResult(
        job_id=job.job_id,
        status="failed",
        attempt=attempt,
        label=job.label,
        finished_at=finished_at,
        error={"code": error.code, "message": error.message, **error.details},
        timings=timings or {},
    )


def parse_job_document(document: object, *, job_id: str, templates: Templates) -> Job:
    """Build the job that a JSON document describes; a template becomes the workflow that it stands for.

    Raises:
        InvalidRequestError: One line that names every field that is wrong or unknown, or the missing template.
        TemplateInvalidError: The template's file is wrong.
        StorageUnavailableError: The template can't be read now.
    """
    parsed = validated(JobDocument, document)
    filled = _fill(parsed, templates, job_id) if parsed.template else FilledTemplate(parsed.workflow, {})
    return Job(
        job_id=job_id,
        workflow=filled.workflow,
        label=parsed.label,
        deadline_seconds=parsed.deadline_seconds,
        webhooks=(WebhookTarget(parse_webhook_url(parsed.webhook.url)),) if parsed.webhook else (),
        preloads=filled.preloads,
        credentials=to_credentials(parsed.credentials),
    )


def parse_webhook_url(text: str, *, what: str = "webhook.url") -> str:
    """The URL of a receiver, checked as far as it can be without asking for its address.

    Raises:
        InvalidRequestError: It is none; it is not repeated, as it may hold a secret.
    """
    try:
        url = parse_source_url(text)
    except ValueError:
        url = None
    if url is None or url.scheme == "s3":
        message = f"{what}: expected an http or https URL without a user name and password"
        raise InvalidRequestError(message, details={"location": what})
    return text


def _fill(parsed: JobDocument, templates: Templates, job_id: str) -> FilledTemplate:
    try:
        return templates.fill(parsed.template, parsed.parameters, job_id=job_id)
    except TemplateMissingError as error:
        raise InvalidRequestError(f"template: {error.message}") from error


def validated(model: type[_Model], document: object) -> _Model:
    """A JSON document as a pydantic model.

    Raises:
        InvalidRequestError: One line that names every field that is wrong or unknown; values are not repeated.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = [
            (_location(problem["loc"], document), _reason(problem))
            for problem in error.errors(include_url=False, include_input=False)
        ]
        message = "; ".join(f"{where or 'document'}: {what}" for where, what in found)
        raise InvalidRequestError(message, details={"location": found[0][0]}) from error


def _reason(problem: ErrorDetails) -> str:
    """What is wrong, in words that repeat no value."""
    if problem["type"] == "extra_forbidden":
        return "unknown field"
    if problem["type"] == "union_tag_invalid":
        return f"expected a type that is one of {problem['ctx']['expected_tags']}"
    return problem["msg"]


def _location(parts: tuple[int | str, ...], document: object) -> str:
    """Where in a document a problem lies: pydantic's path without the names of the alternatives that it tried."""
    found, place = [], document
    for number, part in enumerate(parts):
        if isinstance(place, dict) and part not in place and number < len(parts) - 1:
            continue
        place = place.get(part) if isinstance(place, dict) else None
        found.append(str(part))
    return ".".join(found)

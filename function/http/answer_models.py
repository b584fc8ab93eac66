"""What answers look like, for the OpenAPI document; `tests/e2e/test_openapi.py` holds the answers against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

JobId = Field(pattern="^[0-9a-f]{32}$", description="The job.")


class Error(BaseModel):
    """Why there is no other answer. Some errors have more members, such as ComfyUI's `node_errors`."""

    error: str = Field(description="One line for people.")
    code: str = Field(default="", description="A stable word for programs.")


class OpenAIErrorMembers(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str = Field(description="One line for people.")
    type: str = Field(
        description="`invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`."
    )
    param: str | None = Field(description="The field of the request that is to blame.")
    code: str | None = Field(description="A stable word for programs.")


class OpenAIError(BaseModel):
    """Why there is no other answer."""

    error: OpenAIErrorMembers


class State(BaseModel):
    """How the function is."""

    version: str
    status: str
    detail: str = Field(default="", description="Why it is not, in one line.")


class PromptAnswer(BaseModel):
    """A job that has ended well, with its files."""

    id: str
    prompt: dict[str, Any] = Field(description="The workflow that was run.")
    images: list[str] = Field(description="Every output file in base64, or its URL.")
    filenames: list[str] = Field(description="Their names, in the same order.")
    stats: dict[str, Any] = Field(description="Milliseconds by stage.")
    warnings: list[str] = Field(default_factory=list, description="What was ignored, or could not be converted.")


class Interrupted(BaseModel):
    """Whether a job was ended."""

    id: str
    interrupted: Literal["success", "failed"]


class AcceptedJob(BaseModel):
    """A job that is recorded and will be run."""

    job_id: str = JobId
    status: str
    urls: dict[str, str] = Field(description="Where to ask: `self`, `events`, `cancel`.")


class Progress(BaseModel):
    """How far a job is."""

    stage: Literal["queued", "models", "inputs", "executing", "storing"]
    fraction: float = Field(ge=0, le=1, description="Done part of the stage.")
    detail: str
    node_id: str
    class_type: str
    step: int
    steps: int
    nodes_done: int
    nodes_total: int


class OutputFile(BaseModel):
    """One output file."""

    node_id: str
    kind: str
    filename: str
    subfolder: str
    media_type: str
    size_bytes: int
    sha256: str
    width: int | None
    height: int | None
    url: str


class Manifest(BaseModel):
    """How a job ended, as it is stored."""

    job_id: str = JobId
    status: Literal["completed", "failed"]
    attempt: int
    label: str
    finished_at: str
    outputs: list[OutputFile]
    texts: dict[str, list[str]]
    error: dict[str, Any] | None
    timings: dict[str, float] = Field(description="Seconds by stage.")


class JobState(BaseModel):
    """One job, whichever pod runs it."""

    job_id: str = JobId
    status: Literal["queued", "running", "cancelling", "completed", "failed"]
    created_at: str
    attempts: int
    progress: Progress | None
    queue_position: int | None = Field(description="Older jobs that are open.")
    result: Manifest | None


class JobList(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[JobState]
    next: str | None = Field(description="What `after` is for the next page.")


class TemplateNames(BaseModel):
    """The templates there are."""

    workflows: list[str]


class TemplateDescription(BaseModel):
    """What a template takes."""

    name: str
    description: str
    parameters: dict[str, Any]
    upload: str | None
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema of `input`.")


class Download(BaseModel):
    """A model that was brought, or is being brought."""

    url: str
    model_type: str
    filename: str
    status: Literal["started", "completed"]
    size: int = Field(default=0, description="Bytes; only of a completed one.")
    duration: float = Field(default=0.0, description="Seconds; only of a completed one.")


class Image(BaseModel):
    """One image: its URL or its bytes in base64."""

    url: str = ""
    b64_json: str = ""


class Images(BaseModel):
    """Images, as OpenAI answers."""

    created: int = Field(description="Unix seconds.")
    data: list[Image]


class Model(BaseModel):
    """A template as a model of OpenAI's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """Every template."""

    object: Literal["list"]
    data: list[Model]

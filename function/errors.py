"""Every error the function answers with, drawn once as a tree.

A class fixes three things that all edges render: `code` (a stable word for programs), `status` (HTTP) and
`retryable` (whether the same job may succeed later or elsewhere). A retryable error leaves no manifest behind, so
that a redelivery runs the job again; any other is final and is stored as the job's failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class ComfyfnError(Exception):
    """Root of the tree: one line for people, `details` for programs.

    Args:
        message: One line that names the thing and, where there is one, the remedy. Never a secret or a stack trace.
        details: Extra JSON members of the answer, for example `node_errors` in ComfyUI's own shape.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})

    def at(self, place: str, *, location: str) -> Self:
        """The same error, which says first what could not be done, and in which member of the request.

        Args:
            place: What could not be done, for people, in comfyui-api's words.
            location: The member, for programs, as comfyui-api has it: `prompt.10.inputs.image`.
        """
        return type(self)(f"{place}: {self.message}", details={**self.details, "location": location})


class InvalidRequestError(ComfyfnError):
    """The request is not what the route takes: not JSON, unknown field, wrong type."""

    code = "invalid_request"
    status = 400


class UnsupportedMediaTypeError(ComfyfnError):
    """The Content-Type says that the body is no JSON; it was not read."""

    code = "unsupported_media_type"
    status = 415


class BodyTooLargeError(ComfyfnError):
    """The body is larger than MAX_BODY_SIZE_MB; it was not read."""

    code = "body_too_large"
    status = 413


class UnauthorizedError(ComfyfnError):
    """The request brings no token of API_TOKENS."""

    code = "unauthorized"
    status = 401


class JobMissingError(ComfyfnError):
    """There is no job of this id, or none any more."""

    code = "job_missing"
    status = 404


class RecordInvalidError(ComfyfnError):
    """A record of a job can't be read: something else wrote to RESULTS_URL; trying again does not help."""

    code = "record_invalid"


class IdempotencyConflictError(ComfyfnError):
    """An Idempotency-Key came again with another request."""

    code = "idempotency_conflict"
    status = 422


class NotHereError(ComfyfnError):
    """This service doesn't do that: it has no engine, or nowhere to send jobs to."""

    code = "not_here"
    status = 501


class JobFailedError(ComfyfnError):
    """The job can't succeed as it is: the same job would fail again on every pod."""

    code = "job_failed"
    status = 422


class InvalidWorkflowError(JobFailedError):
    """The workflow is no runnable graph: UI format, no output node, refused by the engine (`node_errors`)."""

    code = "invalid_workflow"
    status = 400


class TemplateMissingError(JobFailedError):
    """There is no template of this name under WORKFLOWS_URL.

    Its status is for a name in a URL. A document that names it is an invalid request: brokers deliver again what is
    answered 404.
    """

    code = "template_missing"
    status = 404


class TemplateInvalidError(JobFailedError):
    """A template's file is wrong; who looks after WORKFLOWS_URL has to mend it."""

    code = "template_invalid"


class ModelMissingError(JobFailedError):
    """A model that the workflow names is neither in the cache nor in storage."""

    code = "model_missing"


class ModelUnavailableError(JobFailedError):
    """A model can't be had from the URL by which a request names it."""

    code = "model_unavailable"
    status = 400


class ModelAmbiguousError(JobFailedError):
    """A model's name, given to a node that is not ComfyUI's own, fits several files in storage (`candidates`)."""

    code = "model_ambiguous"


class ModelTooLargeError(JobFailedError):
    """The models of one job together are larger than the cache."""

    code = "model_too_large"


class InputMissingError(JobFailedError):
    """An input file that the workflow names is nowhere."""

    code = "input_missing"
    status = 400


class InputUnavailableError(JobFailedError):
    """An input file can't be had from the server that its URL names, however often it is asked."""

    code = "input_unavailable"
    status = 400


class InputRefusedError(JobFailedError):
    """An input, output or model names what jobs may not use, or an input file is larger than it may be."""

    code = "input_refused"
    status = 400


class NodeRefusedError(JobFailedError):
    """The workflow uses a node that ALLOWED_NODES or DENIED_NODES does not let it use."""

    code = "node_refused"


class BudgetExceededError(JobFailedError):
    """A node asks for more pixels, images or frames than MAX_PIXELS, MAX_BATCH or MAX_FRAMES allows."""

    code = "budget_exceeded"


class NodeFailedError(JobFailedError):
    """A node raised while the engine executed the workflow."""

    code = "node_failed"


class OutOfMemoryError(JobFailedError):
    """The engine ran out of memory, again after its memory had been freed."""

    code = "out_of_memory"


class InterruptedJobError(JobFailedError):
    """Somebody interrupted the run."""

    code = "interrupted"


class JobCancelledError(JobFailedError):
    """Somebody cancelled the job."""

    code = "cancelled"


class DeadlineExceededError(JobFailedError):
    """The job's deadline passed while the engine executed it."""

    code = "deadline_exceeded"
    status = 504


class UploadFailedError(JobFailedError):
    """An output could not be brought to where its sender wants it."""

    code = "upload_failed"
    status = 502


class JobPoisonedError(JobFailedError):
    """The job ended without a result in every attempt it is allowed."""

    code = "job_poisoned"


class RetryableError(ComfyfnError):
    """The job may succeed later or on another pod.

    Args:
        message: One line for people.
        retry_after_seconds: What the answer's Retry-After header says.
    """

    code = "unavailable"
    status = 503
    retryable = True
    spends_attempt: ClassVar[bool] = False
    """Whether an attempt that ends so is one of the few that a job has: when the job itself may be the reason."""

    def __init__(self, message: str, *, retry_after_seconds: int = 5, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details=details)
        self.retry_after_seconds = retry_after_seconds


class QueueFullError(RetryableError):
    """ADMIT_LIMIT jobs are waiting or running in this pod."""

    code = "queue_full"
    status = 429


class CacheBusyError(RetryableError):
    """The cache has no room until running jobs release their models."""

    code = "cache_busy"
    status = 429


class JobRunningError(RetryableError):
    """The same job is running already."""

    code = "job_running"
    status = 409


class DrainingError(RetryableError):
    """The pod is shutting down; the job had not started."""

    code = "draining"


class ClientGoneError(RetryableError):
    """The client closed its connection before the answer; a job that is delivered again runs again."""

    code = "client_gone"


class EngineUnavailableError(RetryableError):
    """The engine died in mid-run or does not answer any more."""

    code = "engine_unavailable"
    spends_attempt = True


class EngineNotReadyError(EngineUnavailableError):
    """The engine did not start or takes no connection: it never saw the job, which can't be the reason."""

    spends_attempt = False


class StorageUnavailableError(RetryableError):
    """Storage does not answer, answers with an error, or refuses our credentials."""

    code = "storage_unavailable"


class SettingsError(ComfyfnError):
    """A setting has a value that is not allowed; the start stops with this one line."""

    code = "settings"


def error_of(document: Mapping[str, Any]) -> ComfyfnError:
    """The error that a manifest holds: `code`, `message`, and everything else as details."""
    classes = {kind.code: kind for kind in _descendants(JobFailedError)}
    details = {name: value for name, value in document.items() if name not in {"code", "message"}}
    return classes.get(str(document["code"]), JobFailedError)(str(document["message"]), details=details)


def _descendants(kind: type[JobFailedError]) -> Iterator[type[JobFailedError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _descendants(below)

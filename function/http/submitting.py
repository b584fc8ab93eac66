"""What all routes that submit jobs have in common: who the job is, and whether its sender waits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from function.answers import with_prefixes
from function.errors import InvalidRequestError, error_of
from function.handover import LEGACY_WEBHOOK, WEBHOOK_V2, WebhookTarget
from function.http.responses import connection_of, json_response
from function.http.upload_targets import parse_upload, with_credentials
from function.job import Job, derived_job_id, parse_webhook_url, random_job_id
from function.request_credentials import to_credentials
from function.workflow import parse_workflow

if TYPE_CHECKING:
    from typing import Any

    from flask import Request, Response

    from function.config import Settings
    from function.handover import UploadTarget
    from function.http.bodies import RequestBody
    from function.http.prompt_request import ClientRequest
    from function.job import JobResult
    from function.lifecycle import Function

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def identify(request: Request, body: RequestBody) -> tuple[str, str]:
    """The id of the job that a request asks for, and the digest that tells it from others with the same key.

    With an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) the same request sent again means the same
    job; without one every request is a job of its own, and the digest is "".

    Raises:
        InvalidRequestError: The key is none.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return random_job_id(), ""
    if not _KEY.fullmatch(key):
        raise InvalidRequestError("Idempotency-Key: expected 1 to 255 printable ASCII characters without spaces")
    return derived_job_id("Idempotency-Key", key), body.sha256


def wants_no_wait(request: Request) -> bool:
    """Whether the sender asks to be answered at once: `Prefer: respond-async` (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("Prefer"))
    return any(item.split(";")[0].strip().lower() == "respond-async" for item in preferences.split(","))


def read_job(
    request: Request,
    identity: tuple[str, str],
    wanted: ClientRequest,
    workflow: dict[str, Any],
    *,
    settings: Settings,
    preloads: tuple[str, ...] = (),
    shown: dict[str, Any] | None = None,
) -> tuple[Job, list[str]]:
    """The job of a sender who gets the files in the answer, or at once a 202 if that is preferred; and warnings.

    It is stored only if somebody may ask for it again.

    Args:
        request: Whose headers say how it is to be answered.
        identity: From `identify`.
        wanted: What the request asks for.
        workflow: The graph.
        settings: What is allowed.
        preloads: As `Job.preloads`.
        shown: More of the request that answers repeat.

    Raises:
        InvalidWorkflowError: The graph is none.
        InvalidRequestError: A webhook or an upload that can't be, or that is not allowed.
    """
    job_id, digest = identity
    webhooks = _webhooks(wanted)
    credentials = to_credentials(wanted.credentials)
    target, unattended = parse_upload(wanted, settings.output_url_allow)
    asynchronous = unattended or bool(webhooks) or wants_no_wait(request)
    ignored = target is not None and wanted.webhook is not None and wanted.webhook_v2 is None
    job = Job(
        job_id=job_id,
        workflow=with_prefixes(parse_workflow(workflow), wanted.id or job_id, keep_prefix=settings.prepend_filenames),
        label=wanted.id,
        stored=asynchronous or bool(digest),
        interactive=True,
        asynchronous=asynchronous,
        webhooks=webhooks,
        request_sha256=digest,
        preloads=preloads,
        credentials=credentials,
        convert_output=wanted.conversion,
        upload=None if ignored or target is None else with_credentials(target, credentials, settings),
        request=_shown(wanted, target) | (shown or {}),
    )
    return job, ["the upload is ignored, because webhook gets the files"] * ignored


def _webhooks(wanted: ClientRequest) -> tuple[WebhookTarget, ...]:
    urls = {WEBHOOK_V2: wanted.webhook_v2, LEGACY_WEBHOOK: wanted.webhook}
    return tuple(WebhookTarget(parse_webhook_url(url, what=form), form) for form, url in urls.items() if url)


def _shown(wanted: ClientRequest, target: UploadTarget | None) -> dict[str, Any]:
    """The request's fields, without the password that the URL of an upload may hold."""
    shown = wanted.shown()
    block = shown.pop("http_upload", None)
    if block and target and not target.is_s3:
        shown["http_upload"] = block | {"url_prefix": target.url_prefix}
    return shown


def completed(function: Function, job: Job, request: Request) -> JobResult:
    """The result of a job whose sender waits for it.

    Raises:
        ComfyfnError: It failed, now or when the same request came before.
    """
    result = function.handle(job, connection=connection_of(request))
    if result.error:
        raise error_of(result.error)
    return result


def accepted(job: Job, **members: Any) -> Response:  # noqa: ANN401  (JSON is any value)
    """The answer to a job that was recorded and will be run: 202, and where to ask for it."""
    links = {name: f"/jobs/{job.job_id}{path}" for name, path in _LINKS.items()}
    document = {"job_id": job.job_id, "status": "queued", "label": job.label, "urls": links, **members}
    headers = {"Location": links["self"], "Preference-Applied": "respond-async"}
    return json_response(document, status=202, headers=headers)


_LINKS = {"self": "", "events": "/events", "cancel": "/cancel"}

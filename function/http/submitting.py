"""What all routes that submit jobs have in common: who the job is, and whether its sender waits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from function.errors import InvalidRequestError
from function.http.responses import json_response
from function.job import Job, derived_job_id, random_job_id

if TYPE_CHECKING:
    from typing import Any

    from flask import Request, Response

    from function.http.bodies import RequestBody

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
    request: Request, identity: tuple[str, str], workflow: dict[str, Any], *, label: str, preloads: tuple[str, ...] = ()
) -> Job:
    """The job of a sender who gets the files in the answer, or at once a 202 if that is preferred.

    It is stored only if somebody may ask for it again.

    Args:
        request: Whose headers say how it is to be answered.
        identity: From `identify`.
        workflow: The graph.
        label: The sender's own name for it.
        preloads: As `Job.preloads`.
    """
    job_id, digest = identity
    asynchronous = wants_no_wait(request)
    return Job(
        job_id=job_id,
        workflow=workflow,
        label=label,
        stored=asynchronous or bool(digest),
        interactive=True,
        asynchronous=asynchronous,
        request_sha256=digest,
        preloads=preloads,
    )


def accepted(job: Job, **members: Any) -> Response:  # noqa: ANN401  (JSON is any value)
    """The answer to a job that was recorded and will be run: 202, and where to ask for it."""
    links = {name: f"/jobs/{job.job_id}{path}" for name, path in _LINKS.items()}
    document = {"job_id": job.job_id, "status": "queued", "label": job.label, "urls": links, **members}
    headers = {"Location": links["self"], "Preference-Applied": "respond-async"}
    return json_response(document, status=202, headers=headers)


_LINKS = {"self": "", "events": "/events", "cancel": "/cancel"}

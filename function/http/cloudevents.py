"""`POST /`: events and S3 notices in, one structured CloudEvent back.

A broker takes a 2xx with a CloudEvent as the reply event, an empty 2xx as success without one, 404, 408, 409, 429 and
5xx as "deliver again", and any other 4xx as "never again" (Knative's data plane contract).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from events import (
    JobEnded,
    JobRequested,
    MalformedEventError,
    ObjectCreated,
    Tick,
    parse_triggers,
)
from function.errors import ComfyfnError, InvalidRequestError, JobFailedError, JobMissingError, RetryableError
from function.http.bodies import read_body
from function.http.responses import connection_of, to_response
from function.job import JOB_ID, derived_job_id, parse_job_document
from function.jobs.ended import to_ended_event
from function.uploads import to_job

if TYPE_CHECKING:
    from flask import Request, Response

    from events import Delivery, Trigger
    from function.job import Job, JobResult
    from function.lifecycle import Function

_log = logging.getLogger("comfyfn.events")


def receive(function: Function, request: Request) -> Response:
    """Do what a delivery asks for.

    A single event that asks for a single job gets the job's end as its reply; delivered again, it is answered from the
    stored manifest, byte for byte as before. Whatever else asks for jobs (several records, a raw notice, whose sender
    waits for seconds only) and whatever reaches a service without an engine becomes asynchronous jobs.
    """
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        delivery = _parse(request, body.take())
        if delivery.replies and function.has_engine:
            result = _run(function, delivery.triggers[0], request)
            return _reply(result) if result else _nothing(204)
        for trigger in delivery.triggers:
            _begin(function, trigger)
    return _nothing(202 if delivery.triggers else 204)


def _parse(request: Request, body: bytes) -> Delivery:
    try:
        delivery = parse_triggers(dict(request.headers), body)
    except MalformedEventError as error:
        raise InvalidRequestError(str(error)) from error
    if delivery.unconfirmed_topic:
        _log.warning("SNS topic %s asks for a confirmation: confirm its subscription there", delivery.unconfirmed_topic)
    return delivery


def _run(function: Function, trigger: Trigger, request: Request) -> JobResult | None:
    """Run the job that a trigger asks for; None if it asks for none.

    Raises:
        InvalidRequestError: The event's data is no job document; nothing was recorded.
        RetryableError: It may be delivered again.
    """
    if isinstance(trigger, JobRequested) and (job_id := _recorded_id(trigger)):
        return _handle_recorded(function, job_id, request)
    if not isinstance(trigger, JobRequested | ObjectCreated):
        _upkeep(function, trigger)
        return None
    try:
        job, refusal = _job_of(function, trigger)
    except InvalidRequestError:
        # A document that was good when it came first may be so no more: its template is gone.
        if isinstance(trigger, JobRequested) and (result := function.jobs.records.result(_job_id(trigger))):
            return result
        raise
    if job is None:
        return None
    if refusal is None:
        try:
            return function.handle(job, connection=connection_of(request))
        except (JobFailedError, InvalidRequestError) as error:
            job, refusal = _refused(trigger, job, error)
    result = function.jobs.refuse(job, refusal)
    return result or _handle_recorded(function, job.job_id, request)


def _handle_recorded(function: Function, job_id: str, request: Request) -> JobResult:
    return function.handle(function.jobs.records.load(job_id), connection=connection_of(request), recorded=True)


def _refused(trigger: Trigger, job: Job, error: JobFailedError | InvalidRequestError) -> tuple[Job, ComfyfnError]:
    """A job whose files can't be had, or an upload that can't even be recorded as it is, as a job that can't be run.

    Raises:
        InvalidRequestError: It is no upload but an event, whose sender is told.
    """
    if isinstance(error, JobFailedError):
        return job, error
    if not isinstance(trigger, ObjectCreated):
        raise error
    return replace(job, workflow={}, preloads=()), error


def _begin(function: Function, trigger: Trigger) -> None:
    """Record the job that a trigger asks for and send it on its way."""
    if isinstance(trigger, JobRequested) and (job_id := _recorded_id(trigger)):
        function.jobs.resume(job_id)
    elif isinstance(trigger, JobRequested | ObjectCreated):
        job, refusal = _job_of(function, trigger)
        if job:
            _submit(function, trigger, replace(job, asynchronous=True), refusal)
    else:
        _upkeep(function, trigger)


def _submit(function: Function, trigger: Trigger, job: Job, refusal: ComfyfnError | None) -> None:
    """Record a job; one that can't be recorded as it is has failed, because nobody would read an answer."""
    try:
        function.jobs.submit(job, refusal=refusal)
    except (JobFailedError, InvalidRequestError) as error:
        job, refusal = _refused(trigger, job, error)
        function.jobs.submit(job, refusal=refusal)


def _upkeep(function: Function, trigger: Trigger) -> None:
    if isinstance(trigger, JobEnded):
        data = trigger.data if isinstance(trigger.data, dict) else {}
        if JOB_ID.fullmatch(str(data.get("job_id"))):
            function.jobs.ended(data["job_id"])
    elif isinstance(trigger, Tick):
        function.jobs.sweep()


def _job_of(function: Function, trigger: JobRequested | ObjectCreated) -> tuple[Job | None, ComfyfnError | None]:
    """The job that a trigger asks for, and why it can't be run if that is known already.

    An upload has nobody who would read an answer, so one that asks for what can't be is a job that failed. A malformed
    event is refused instead: that is for its sender to mend.
    """
    if isinstance(trigger, JobRequested):
        return parse_job_document(trigger.data, job_id=_job_id(trigger), templates=function.templates), None
    key = function.upload_rules.find_key(trigger)
    if key is None:
        return None, None
    try:
        return function.upload_rules.parse(trigger, key), None
    except RetryableError:
        raise
    except ComfyfnError as error:
        return to_job(trigger, key), error


def _job_id(trigger: JobRequested) -> str:
    return derived_job_id(trigger.source, trigger.id)


def _recorded_id(trigger: JobRequested) -> str:
    """The job that was recorded before, if the event names one instead of describing it."""
    data = trigger.data
    if not isinstance(data, dict) or set(data) != {"job_id"}:
        return ""
    if not isinstance(data["job_id"], str) or not JOB_ID.fullmatch(data["job_id"]):
        raise JobMissingError("job_id: expected 32 hexadecimal digits")
    return data["job_id"]


def _nothing(status: int) -> Response:
    return to_response(b"", status=status)


def _reply(result: JobResult) -> Response:
    headers, body = to_ended_event(result)
    return to_response(body, headers=headers)

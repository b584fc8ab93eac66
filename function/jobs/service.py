"""Jobs as every pod sees them, whichever pod runs them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from function.cancellation import Cancellation
from function.credentials import matching_credential
from function.errors import InvalidRequestError, JobMissingError, NotHereError, StorageUnavailableError
from function.job import JOB_ID, random_job_id
from function.jobs.attempt import refuse_attempt
from function.jobs.labels import labelled, note_label
from function.workflow import has_cut_urls, literal_inputs, parse_workflow, without_url_secrets

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from function.errors import ComfyfnError
    from function.inputs.recording import OwnInputs
    from function.job import Job, JobResult
    from function.jobs.dispatch import Dispatcher
    from function.jobs.records import JobRecords
    from function.jobs.state import JobState
    from function.jobs.sweep import Sweep
    from function.storage.objects import ObjectStore
    from function.telemetry import Progress

_log = logging.getLogger("comfyfn.jobs")

_LOOKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job at one moment.

    Attributes:
        job_id: The job.
        created_at: When it was recorded, by the store's clock.
        status: `queued`, `running`, `cancelling`, `completed` or `failed`; derived, never stored.
        attempts: How many were begun.
        progress: As of its pod's last sign of life, or as of now in its pod; None before that.
        queue_position: Older jobs that are open, of a queued asynchronous job; else None.
        result: Of a job that has ended.
    """

    job_id: str
    created_at: datetime
    status: str
    attempts: int
    progress: Progress | None = None
    queue_position: int | None = None
    result: JobResult | None = None

    def seen(self, near: Progress) -> JobStatus:
        """The same job as its own pod sees it."""
        word = "queued" if near.stage == "queued" else "running"
        return replace(self, status="cancelling" if self.status == "cancelling" else word, progress=near)


class Jobs:
    """Submits jobs, tells of them, cancels them.

    Args:
        records: Their records.
        own_inputs: Makes files that come inside a workflow, and those of other people's servers, objects of the job.
        dispatcher: Sends asynchronous jobs to who runs them; None: there is nobody to send them to.
        sweep: Looks after open jobs; None exactly where there is no dispatcher.
        on_ended: Called with the id of a job that was seen through.
        on_stop: Called at the end.
    """

    def __init__(
        self,
        records: JobRecords,
        own_inputs: OwnInputs,
        *,
        dispatcher: Dispatcher | None,
        sweep: Sweep | None,
        on_ended: Callable[[str], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.records = records
        self.own_inputs = own_inputs
        self._on_ended = on_ended
        self._on_stop = on_stop
        self._dispatcher = dispatcher
        self._sweep = sweep

    @property
    def results(self) -> ObjectStore:
        """RESULTS_URL."""
        return self.own_inputs.sources.results

    def start(self, *, sweeping: bool) -> None:
        """Begin to see asynchronous jobs through.

        Args:
            sweeping: Whether to sweep at intervals. A pod that may be scaled to zero is swept by events instead.
        """
        if self._dispatcher:
            self._dispatcher.start()
        if self._sweep and sweeping:
            self._sweep.start()

    def stop(self) -> None:
        """Leave what is open to other pods, or to the next start."""
        if self._sweep:
            self._sweep.stop()
        if self._dispatcher:
            self._dispatcher.stop()
        self._on_stop()

    def submit(self, job: Job, *, refusal: ComfyfnError | None = None) -> bool:
        """Record a job, and send an asynchronous one on its way; say whether it is new.

        Files inside its workflow go to storage first, and of a job that outlives its request also those of other
        people's servers, so that any pod can run it from its record; it needs no credentials then.

        Args:
            job: The job.
            refusal: Why it can't be run; it is sent all the same, because who runs jobs also tells of their end. One
                that was recorded before as a job that can be run is run.

        Raises:
            InvalidRequestError: It outlives its request, and needs what its record may not hold.
            NotHereError: It outlives its request, and there is nobody to send it to.
            IdempotencyConflictError: Its id belongs to another request.
            JobFailedError: An input file can't be had; naming node and input.
        """
        if job.outlives_request:
            self._refuse_unsendable()
        new = self._record(job, self.own_inputs.without(job) if refusal else self._recordable(job))
        if refusal and (new or self._was_refused(job.job_id)):
            self.end_refused(job, refusal)
        if job.asynchronous and self._dispatcher:
            self._dispatcher.dispatch(job.job_id, webhooks=not new or bool(job.webhooks))
        return new

    def refuse(self, job: Job, error: ComfyfnError) -> JobResult | None:
        """Record a job that can't be run; its result, which is another one if it had one already.

        None: it was recorded before as one that can be run, and is no other job now because the object that it came
        from, or its template, has changed since.

        Raises:
            JobRunningError: Another pod is at it.
        """
        if job.outlives_request:
            self._refuse_unsendable()
        new = self._record(job, self.own_inputs.without(job))
        return self.end_refused(job, error) if new or self._was_refused(job.job_id) else None

    def end_refused(
        self, job: Job, error: ComfyfnError, *, new: bool = True, cancellation: Cancellation | None = None
    ) -> JobResult:
        """End a recorded job that can't be run; see `attempt.refuse_attempt`."""
        return refuse_attempt(self.records, job, error, new=new, cancellation=cancellation or Cancellation())

    def _was_refused(self, job_id: str) -> bool:
        """Whether a job was recorded as one that can't be run: without a workflow."""
        return not self.records.load(job_id).workflow

    def _record(self, job: Job, workflow: Any) -> bool:  # noqa: ANN401  (perhaps no graph)
        not_before = self._dispatcher.answer_by() if self._dispatcher and not job.asynchronous else ""
        new = self.records.submit(replace(job, workflow=workflow), not_before=not_before)
        if job.request:  # of a client that knows its job by the label
            note_label(self.results, job)
        return new

    def repeat(self, job_id: str) -> str:
        """Submit a recorded job again, as an asynchronous one of its own; the new id.

        Raises:
            JobMissingError: There is no such job.
            InvalidRequestError: Its record lacks what the job needs.
            NotHereError: There is nobody to send it to.
        """
        job = self.records.load(job_id)
        self.check_recorded(job)
        again = replace(job, job_id=random_job_id(), stored=True, asynchronous=True, request_sha256="", created_at="")
        self.submit(replace(again, workflow=self.own_inputs.copy(job.workflow, job_id, again.job_id)))
        return again.job_id

    def find(self, label: str) -> str | None:
        """The newest job that its client knows by this id and that has not ended; None if there is none."""
        own = [label] if JOB_ID.fullmatch(label) else []
        states = map(self.records.state, own + labelled(self.results, label))  # asked for one by one, up to the first
        return next((state.job_id for state in states if state.created_at and not state.finished), None)

    def resume(self, job_id: str) -> None:
        """Send a job that was recorded before on its way.

        Raises:
            JobMissingError: There is no such job.
            InvalidRequestError: Its record lacks what the job needs.
            NotHereError: There is nobody to send it to.
        """
        self._refuse_unsendable()
        self.check_recorded(self.records.load(job_id))
        if self._dispatcher:
            self._dispatcher.dispatch(job_id)

    @staticmethod
    def check_recorded(job: Job) -> None:
        """Refuse to run a job from a record that lacks what was cut off from its URLs.

        Raises:
            InvalidRequestError: It does.
        """
        if has_cut_urls(job.workflow):
            raise InvalidRequestError(
                f"job {job.job_id}: the queries and logins of its URLs, which may be secrets, were not recorded: send"
                " the job itself again"
            )

    def _refuse_unsendable(self) -> None:
        if self._dispatcher is None:
            raise NotHereError("asynchronous jobs and webhooks need somebody to send jobs to: set DISPATCH_URL")

    def _recordable(self, job: Job) -> Any:  # noqa: ANN401  (perhaps no graph)
        """The workflow as a record can hold it; what can't be recorded is refused before files are fetched."""
        if not job.outlives_request:
            return self.own_inputs.store(job, remote=False)
        _refuse_password_of_upload(job)
        workflow = self.own_inputs.without(job)
        _refuse_models_with_credentials(workflow, job)
        _refuse_secrets(workflow)
        if workflow != job.workflow and self.records.state(job.job_id).created_at:
            return workflow  # it was recorded before, with its files
        return self.own_inputs.store(job, remote=True)

    def ended(self, job_id: str) -> None:
        """A job has ended, as an event says: see it off."""
        if self.records.state(job_id).finished:
            self._on_ended(job_id)

    def answered(self, job: Job) -> None:
        """A job has ended in its own request: see it off if it outlives that; if storage is away, a sweep does it."""
        if job.outlives_request and not job.asynchronous:
            try:
                self._on_ended(job.job_id)
            except StorageUnavailableError as error:
                _log.warning("job %s: %s", job.job_id, error.message)

    def sweep(self) -> None:
        """Look after the open jobs once."""
        if self._sweep:
            self._sweep.run()

    def status(self, job_id: str, *, near: Progress | None = None) -> JobStatus:
        """How a job is doing, whichever pod runs it.

        Args:
            job_id: The job.
            near: How far it is, if it waits or runs in this process; nobody knows better.

        Raises:
            JobMissingError: There is no such job.
        """
        state = self.records.state(job_id)
        if state.created_at is None:
            raise JobMissingError(f"there is no job {job_id}")
        status = JobStatus(job_id, state.created_at, self._word(state), len(state.attempts))
        if state.finished and (result := self.records.result(job_id)):
            return replace(status, status=result.status, result=result)
        if near:
            return status.seen(near)
        if status.status == "queued":
            return replace(status, queue_position=self._queue_position(job_id))
        return replace(status, progress=self.records.progress(state))

    def _word(self, state: JobState) -> str:
        if state.cancelled:
            return "cancelling"
        return "running" if state.live_attempt(self.records.lease_seconds) else "queued"

    def _queue_position(self, job_id: str) -> int | None:
        job = self.records.load(job_id)
        return self.records.queue_position(job) if job.asynchronous else None

    def page(
        self, near: Callable[[str], Progress | None], *, limit: int, after: str = ""
    ) -> tuple[list[JobStatus], str]:
        """Jobs, the newest first, and what to pass as `after` for the next ones ("": there are none)."""
        ids, following = self.records.newest(limit=limit, after=after)
        with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="jobs-page") as pool:
            found = list(pool.map(lambda job_id: self._status_or_none(job_id, near(job_id)), ids))
        return [status for status in found if status], following

    def _status_or_none(self, job_id: str, near: Progress | None) -> JobStatus | None:
        try:
            return self.status(job_id, near=near)
        except JobMissingError:  # it expires just now
            return None


def _refuse_password_of_upload(job: Job) -> None:
    if job.upload and job.upload.credentials:
        raise InvalidRequestError(
            "http_upload.url_prefix: a job that is answered at once is run from storage, which keeps no password and no"
            " credentials: put them into MODEL_URL_CREDENTIALS",
            details={"location": "http_upload.url_prefix"},
        )


def _refuse_secrets(workflow: Any) -> None:  # noqa: ANN401  (perhaps no graph)
    if without_url_secrets(workflow) != workflow:
        raise InvalidRequestError(
            "workflow: a job that is asynchronous or has a webhook is run from storage, and the query of a URL may be"
            " a secret, as may a user name in it: leave them out, or put the host's credentials into"
            " MODEL_URL_CREDENTIALS"
        )


def _refuse_models_with_credentials(workflow: Any, job: Job) -> None:  # noqa: ANN401  (perhaps no graph)
    """Whoever runs the job from its record would not have them."""
    if not job.credentials:
        return
    for node_id, _, name, value in literal_inputs(parse_workflow(workflow)):
        if matching_credential(job.credentials, value):
            error = InvalidRequestError(
                f"input {name}: a job that is asynchronous or has a webhook is run from storage, where the request's "
                "credentials are not kept: put them into MODEL_URL_CREDENTIALS, or bring the model by POST /download"
            )
            raise error.at(f"Failed to process model for node {node_id}", location=f"prompt.{node_id}.inputs")

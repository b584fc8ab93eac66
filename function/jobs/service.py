"""Jobs as every pod sees them, whichever pod runs them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from function.errors import InvalidRequestError, JobMissingError, NotHereError, StorageUnavailableError
from function.inputs import copy_own_inputs, store_inline_inputs
from function.job import JOB_ID, random_job_id
from function.jobs.labels import labelled, note_label
from function.workflow import without_url_queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from function.errors import ComfyfnError
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
        results: Where RESULTS_URL points; files that come inside a workflow are stored there.
        dispatcher: Sends asynchronous jobs to who runs them; None: there is nobody to send them to.
        sweep: Looks after open jobs; None exactly where there is no dispatcher.
        on_ended: Called with the id of a job that was seen through.
        on_stop: Called at the end.
    """

    def __init__(
        self,
        records: JobRecords,
        results: ObjectStore,
        *,
        dispatcher: Dispatcher | None,
        sweep: Sweep | None,
        on_ended: Callable[[str], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.records = records
        self.results = results
        self._on_ended = on_ended
        self._on_stop = on_stop
        self._dispatcher = dispatcher
        self._sweep = sweep

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

        Files inside its workflow go to storage first, so that any pod can run the job from its record.

        Args:
            job: The job.
            refusal: Why it can't be run; it is sent all the same, because who runs jobs also tells of their end.

        Raises:
            InvalidRequestError: It outlives its request, and needs what its record may not hold.
            NotHereError: It outlives its request, and there is nobody to send it to.
            IdempotencyConflictError: Its id belongs to another request.
        """
        if job.outlives_request:
            self._refuse_unrunnable(job)
        workflow = store_inline_inputs(job.workflow, job.job_id, self.results)
        not_before = self._dispatcher.answer_by() if self._dispatcher and not job.asynchronous else ""
        new = self.records.submit(replace(job, workflow=workflow), not_before=not_before)
        if job.request:  # of a client that knows its job by the label
            note_label(self.results, job)
        if refusal:
            self.records.fail(job.job_id, refusal)
        if job.asynchronous and self._dispatcher:
            self._dispatcher.dispatch(job.job_id)
        return new

    def refuse(self, job: Job, error: ComfyfnError) -> JobResult:
        """Record a job that can't be run; its result, which is another one if it had one already."""
        self.submit(job)
        return self.records.fail(job.job_id, error)

    def repeat(self, job_id: str) -> str:
        """Submit a recorded job again, as an asynchronous one of its own; the new id.

        Raises:
            JobMissingError: There is no such job.
            NotHereError: There is nobody to send it to.
        """
        job = self.records.load(job_id)
        again = replace(job, job_id=random_job_id(), stored=True, asynchronous=True, request_sha256="", created_at="")
        self.submit(replace(again, workflow=copy_own_inputs(job.workflow, job_id, again.job_id, self.results)))
        return again.job_id

    def find(self, label: str) -> list[str]:
        """Ids of the jobs that their clients know by this id and that have not ended, the newest first."""
        own = [label] if JOB_ID.fullmatch(label) else []
        states = [self.records.state(job_id) for job_id in own + labelled(self.results, label)]
        return [state.job_id for state in states if state.created_at and not state.finished]

    def resume(self, job_id: str) -> None:
        """Send a job that was recorded before on its way.

        Raises:
            JobMissingError: There is no such job.
            NotHereError: There is nobody to send it to.
        """
        self._refuse_unrunnable(self.records.load(job_id))
        if self._dispatcher:
            self._dispatcher.dispatch(job_id)

    def _refuse_unrunnable(self, job: Job) -> None:
        if self._dispatcher is None:
            raise NotHereError("asynchronous jobs and webhooks need somebody to send jobs to: set DISPATCH_URL")
        if job.upload and job.upload.credentials:
            raise InvalidRequestError(
                "http_upload.url_prefix: a job that is answered at once is run from storage, which keeps no password: "
                "put it into MODEL_URL_CREDENTIALS",
                details={"location": "http_upload.url_prefix"},
            )
        if without_url_queries(job.workflow) != job.workflow:
            raise InvalidRequestError(
                "workflow: a job that is asynchronous or has a webhook is run from storage, and the query of a URL may "
                "be a secret: leave it out, or put the host's credentials into MODEL_URL_CREDENTIALS"
            )

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

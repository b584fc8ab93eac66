"""One attempt at a stored job: claimed, worked on under a lease, ended by a result or handed back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from function.errors import JobFailedError, RetryableError
from function.job import JobResult, failed_result
from function.jobs.lease import Lease
from function.jobs.manifest import to_timestamp, utc_now
from function.telemetry import ignore_progress

if TYPE_CHECKING:
    from function.cancellation import Cancellation
    from function.errors import ComfyfnError
    from function.job import Job
    from function.jobs.records import JobRecords
    from function.telemetry import OnProgress, Progress


class Work(Protocol):
    """Does a job."""

    def __call__(self, attempt: int, on_progress: OnProgress, /) -> JobResult:
        """Do it as this attempt; a job that can't succeed has a failed result.

        Raises:
            RetryableError: It may succeed later or on another pod.
        """
        ...


def run_attempt(
    records: JobRecords,
    job: Job,
    work: Work,
    *,
    new: bool,
    cancellation: Cancellation,
    on_progress: OnProgress,
    open_lease: type[Lease] = Lease,
) -> JobResult:
    """Take a job, have it done, and return the result that counts: the first that was stored.

    Whatever ends the attempt without a result for a reason that passes hands it back, a result that could not be stored
    among it. An error of ours does not: that attempt counts, and its lease has to end first.

    Args:
        records: Where the job is recorded.
        job: The job.
        work: Does it, if it has no result and nobody else is at it.
        new: Whether nobody is known to have claimed it.
        cancellation: Ends the work.
        on_progress: Told what the beats tell.
        open_lease: Keeps the attempt.

    Raises:
        RetryableError: The job may succeed later or on another pod, or another pod is at it.
    """
    since = cancellation.now()
    try:
        claimed = records.claim(job.job_id, new=new)
    except JobFailedError as error:
        return records.fail(job.job_id, error)
    if isinstance(claimed, JobResult):
        return claimed
    with open_lease(records, job.job_id, claimed, cancellation=cancellation, since=since) as lease:

        def on_both(progress: Progress) -> None:
            lease.see(progress)
            on_progress(progress)

        try:
            return records.finish(work(claimed, on_both))
        except RetryableError as error:
            lease.hand_back(error)
            raise


def refuse_attempt(
    records: JobRecords, job: Job, error: ComfyfnError, *, new: bool, cancellation: Cancellation
) -> JobResult:
    """End a recorded job that can't be run: as an attempt, because another pod may be at it.

    Args:
        records: Where the job is recorded.
        job: The job.
        error: Why it can't.
        new: Whether nobody is known to have claimed it.
        cancellation: As for `run_attempt`.

    Raises:
        RetryableError: Another pod is at it, or storage does not answer.
    """

    def work(attempt: int, _on_progress: OnProgress) -> JobResult:
        return failed_result(job, attempt, error, finished_at=to_timestamp(utc_now()))

    return run_attempt(records, job, work, new=new, cancellation=cancellation, on_progress=ignore_progress)

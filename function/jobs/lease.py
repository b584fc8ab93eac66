"""Holding a job: a beat in storage while it is worked on, and the end of the work when it no longer is ours."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self

from function.errors import ComfyfnError, JobCancelledError, JobRunningError, StorageUnavailableError
from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.cancellation import Cancellation
    from function.errors import RetryableError
    from function.jobs.records import JobRecords

_log = logging.getLogger("comfyfn.jobs")

_BEATS_PER_LEASE = 4
_STOP_SECONDS = 5.0
_RETRY_SECONDS = 1.0


class Lease:
    """Keeps one attempt alive in a thread of its own, as a context.

    A beat is two requests: one PUT, and one LIST of the job's records, which shows a cancel and, should there be one,
    another pod's result. The lease ends, by our own clock, `lease_seconds` after the last beat that succeeded *began*;
    the store dated that beat later, so the work here has been told to end before any pod may take the job.

    Args:
        records: Where beats go.
        job_id: The job.
        attempt: The attempt that was claimed.
        cancellation: Ends the work.
        since: From before the attempt was claimed, by the clock of `cancellation`.
        sleep: Waits for seconds of that clock.
        stopped: Ends the beats.
    """

    def __init__(
        self,
        records: JobRecords,
        job_id: str,
        attempt: int,
        *,
        cancellation: Cancellation,
        since: float,
        sleep: Callable[[float], None] = time.sleep,
        stopped: threading.Event | None = None,
    ) -> None:
        self._records = records
        self._job_id = job_id
        self._attempt = attempt
        self._cancellation = cancellation
        self._progress = Progress("models", 0.0)
        self._sleep = sleep
        self._stopped = stopped or threading.Event()
        self._returned: RetryableError | None = None
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._extend(since)

    def see(self, progress: Progress) -> None:
        """What the next beat says."""
        self._progress = progress

    def __enter__(self) -> Self:
        """Begin to beat."""
        self._thread.start()
        return self

    def hand_back(self, error: RetryableError) -> None:
        """Leave the job to whoever comes next, from the end of the context on.

        While storage is away this is tried again, but not waited for; it matters until the lease is over anyway.
        """
        self._returned = error

    def __exit__(self, *_: object) -> None:
        """Beat no more; a request that hangs is not waited for: what it may still write says nothing new."""
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)

    def _extend(self, since: float) -> None:
        what = f"job {self._job_id}: storage took no sign of life in time; another pod may take the job"
        self._cancellation.expire(since + self._records.lease_seconds, JobRunningError(what))

    def _keep(self) -> None:
        while not self._stopped.wait(self._records.lease_seconds / _BEATS_PER_LEASE):
            began = self._cancellation.now()
            try:
                self._records.beat(self._job_id, self._attempt, self._progress)
                self._extend(began)
                self._look()
            except StorageUnavailableError as error:
                _log.warning("no sign of life: %s", error.message)
        if self._returned and not isinstance(self._returned, JobRunningError):  # else it is ours no more
            self._return(self._returned)

    def _return(self, error: RetryableError) -> None:
        give_up_at = self._cancellation.now() + self._records.lease_seconds
        while self._cancellation.now() < give_up_at:
            try:
                self._records.hand_back(self._job_id, self._attempt, error)
            except StorageUnavailableError as problem:
                _log.warning("an attempt can't be handed back: %s", problem.message)
                self._sleep(_RETRY_SECONDS)
            else:
                return

    def _look(self) -> None:
        state = self._records.state(self._job_id)
        reason: ComfyfnError | None = None
        if state.cancelled:
            reason = JobCancelledError(f"job {self._job_id} was cancelled")
        elif state.finished or state.next_attempt != self._attempt + 1:
            reason = JobRunningError(f"job {self._job_id}: another pod has taken it", retry_after_seconds=1)
        if reason:
            self._cancellation.cancel(reason)

"""The records of all jobs, below one results store; what each key means stands in the package's docstring."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from function.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    JobCancelledError,
    JobMissingError,
    JobPoisonedError,
    JobRunningError,
    RecordInvalidError,
    RetryableError,
)
from function.job import failed_result
from function.jobs.labels import forget_label
from function.jobs.manifest import (
    MAX_MANIFEST_BYTES,
    parse_job,
    parse_manifest,
    parse_record,
    to_job_record,
    to_json,
    to_manifest,
    to_timestamp,
    utc_now,
)
from function.jobs.state import FAILED, RETURNED, JobState, parse_state
from function.storage.objects import ObjectMissingError
from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.errors import ComfyfnError
    from function.job import Job, JobResult
    from function.storage.objects import Listing, ObjectStore

MAX_ATTEMPTS = 3
"""Attempts that may end without a result, or with a dead pod."""

_MAX_CLAIMS = 100  # also of those that were handed back: their records are listed at each beat
_CLAIM_TRIES = 10
_FRESH_SECONDS = 5.0
DEAD_LETTERS = "webhooks/dead/"
"""Of webhooks that were given up; they are kept as long as their jobs."""

_INDEX = "index/"
_LAST_MILLISECOND = 9_999_999_999_999


class JobRecords:
    """Reads and writes them; holds nothing but the store.

    Args:
        store: Where RESULTS_URL points.
        lease_seconds: After how long without a sign of life another pod may take a job.
        clock: Dates the records, for people; leases go by the store's clock.
    """

    def __init__(
        self, store: ObjectStore, *, lease_seconds: float = 20.0, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.lease_seconds = lease_seconds
        self._store = store
        self._clock = clock

    def submit(self, job: Job, *, not_before: str = "") -> bool:
        """Record a job, and for one that outlives its request that it is open; say whether it is new.

        A job that is there already stays as it is. While nobody has claimed it, it is entered into the index again, and
        opened while it has no result, because whoever recorded it may have died before that.

        Args:
            job: The job.
            not_before: As for `open`.

        Raises:
            IdempotencyConflictError: It is there, and came from another request.
            InvalidRequestError: The record is larger than can be kept.
        """
        created_at = to_timestamp(self._clock())
        record = to_job_record(job, created_at=created_at)
        if len(record) > MAX_MANIFEST_BYTES:
            raise InvalidRequestError(f"workflow: larger than {MAX_MANIFEST_BYTES} bytes without the files in it")
        new = self._store.create(_job_key(job.job_id), record)
        if new:
            self._store.create(_index_key(created_at, job.job_id), b"{}")
        elif self._finish_recording(job):
            return False
        if job.outlives_request:
            self.open(job.job_id, not_before=not_before)
        return new

    def _finish_recording(self, job: Job) -> bool:
        """Write what is missing of a job that is there already but for its opening; whether it has ended."""
        if job.request_sha256 and job.request_sha256 != self.load(job.job_id).request_sha256:
            raise IdempotencyConflictError("the Idempotency-Key was used for another request: choose a new key")
        state = self.state(job.job_id)
        if not state.attempts and not state.finished:
            self._store.create(_index_key(self.load(job.job_id).created_at, job.job_id), b"{}")
        return state.finished

    def load(self, job_id: str) -> Job:
        """A job as it was recorded.

        Raises:
            JobMissingError: There is none of this id, or none any more.
            RecordInvalidError: The record is damaged.
        """
        try:
            data = self._store.get(_job_key(job_id), max_bytes=MAX_MANIFEST_BYTES)
        except ObjectMissingError as error:
            raise JobMissingError(f"there is no job {job_id}") from error
        return parse_record(_job_key(job_id), data, parse_job)

    def is_fresh(self, job: Job) -> bool:
        """Whether a job was recorded so short a time ago that nobody is known to have claimed it.

        That saves its first pod a look at its records. It is no more than a guess, by the clocks of two pods: should
        somebody have claimed the job, another claim fails.
        """
        return abs((self._clock() - datetime.fromisoformat(job.created_at)).total_seconds()) < _FRESH_SECONDS

    def state(self, job_id: str) -> JobState:
        """What all records of a job say now, by one request."""
        return parse_state(job_id, self._store.list_page(f"jobs/{job_id}/"))

    def result(self, job_id: str) -> JobResult | None:
        """How the job ended, None while it has not."""
        try:
            return parse_manifest(self._store.get(_result_key(job_id), max_bytes=MAX_MANIFEST_BYTES))
        except ObjectMissingError:
            return None

    def standing(self, job_id: str) -> JobResult | JobState:
        """The result of a job that was submitted before; if somebody has to run it, its state.

        Raises:
            JobRunningError: Another pod is at it.
        """
        state = self.state(job_id)
        if state.finished and (result := self.result(job_id)):
            return result
        self._refuse_running(state)
        return state

    def claim(self, job_id: str, *, new: bool = False) -> int | JobResult:
        """Take the next attempt: its number, or the result if the job has one.

        Of any number of pods at most one holds a job at any time.

        Args:
            job_id: A job that was submitted.
            new: Nobody is known to have claimed it: the first attempt is tried without a look at the records.

        Raises:
            JobRunningError: Another pod holds the job.
            JobCancelledError: Somebody cancelled it; the caller holds the attempt that has to say so.
            JobPoisonedError: It has used up its attempts.
        """
        if new and self._claim(job_id, 1):
            return 1
        for _ in range(_CLAIM_TRIES):
            state = self.state(job_id)
            if state.finished and (result := self.result(job_id)):
                return result
            self._refuse_running(state)
            _refuse_poisoned(state)
            if self._claim(job_id, state.next_attempt):
                if state.cancelled:
                    raise JobCancelledError(f"job {job_id} was cancelled")
                return state.next_attempt
        raise JobRunningError(f"job {job_id}: other pods keep taking it")

    def _refuse_running(self, state: JobState) -> None:
        if live := state.live_attempt(self.lease_seconds):
            seconds = state.lease_left_seconds(self.lease_seconds)
            what = f"job {state.job_id}: another pod is at attempt {live.number}"
            raise JobRunningError(what, retry_after_seconds=seconds)

    def _claim(self, job_id: str, attempt: int) -> bool:
        claim = {"attempt": attempt, "pod": socket.gethostname(), "claimed_at": to_timestamp(self._clock())}
        return self._store.create(f"jobs/{job_id}/attempt-{attempt}.json", to_json(claim))

    def beat(self, job_id: str, attempt: int, progress: Progress) -> None:
        """Say that an attempt goes on."""
        record = {"at": to_timestamp(self._clock()), "progress": asdict(progress)}
        self._store.put(_beat_key(job_id, attempt), to_json(record), media_type="application/json")

    def progress(self, state: JobState) -> Progress | None:
        """How far the last attempt was at its last beat; None before the first one."""
        if not state.attempts:
            return None
        key = _beat_key(state.job_id, state.attempts[-1].number)
        try:
            data = self._store.get(key, max_bytes=MAX_MANIFEST_BYTES)
        except ObjectMissingError:
            return None
        return parse_record(key, data, lambda record: Progress(**record["progress"]))

    def hand_back(self, job_id: str, attempt: int, error: RetryableError) -> None:
        """End an attempt without a result, so that the next one may begin at once."""
        kind = FAILED if error.spends_attempt else RETURNED
        reason = {"code": error.code, "message": error.message, "at": to_timestamp(self._clock())}
        self._store.create(f"jobs/{job_id}/attempt-{attempt}.{kind}", to_json(reason))

    def finish(self, result: JobResult) -> JobResult:
        """Store the manifest and return the one that counts: the first that was stored for this job."""
        key = _result_key(result.job_id)
        if self._store.create(key, to_json(to_manifest(result))):
            return result
        return parse_manifest(self._store.get(key, max_bytes=MAX_MANIFEST_BYTES))

    def cancel(self, job_id: str) -> None:
        """Ask for a job's end, and end it here and now if no pod holds it; no effect on one that has ended.

        Raises:
            JobMissingError: There is no such job.
        """
        state = self.state(job_id)
        if state.created_at is None:
            raise JobMissingError(f"there is no job {job_id}")
        if state.finished:
            return
        self._store.create(f"jobs/{job_id}/cancel", to_json({"at": to_timestamp(self._clock())}))
        try:
            self.claim(job_id)
        except JobRunningError:
            return  # its holder sees it at its next beat
        except (JobCancelledError, JobPoisonedError) as error:
            self.fail(job_id, error)

    def fail(self, job_id: str, error: ComfyfnError) -> JobResult:
        """End a job with an error, as its last attempt, which the caller has claimed."""
        state = self.state(job_id)
        attempt = state.attempts[-1].number if state.attempts else 0
        return self.finish(failed_result(self.load(job_id), attempt, error, finished_at=to_timestamp(self._clock())))

    def open(self, job_id: str, *, not_before: str = "") -> None:
        """Mark a job as one that somebody must see through to its end.

        Args:
            job_id: The job.
            not_before: Until when nobody else need care, ISO 8601 in UTC.
        """
        self._store.put(_open_key(job_id), to_json({"not_before": not_before}), media_type="application/json")

    def close(self, job_id: str) -> None:
        """Nothing is to be done for this job any more."""
        self._store.delete(_open_key(job_id))

    def open_jobs(self) -> Listing:
        """Which jobs are open, by the records' last segments, and since when nobody has spoken for them.

        A page of a thousand: those at its end come when others are done with.
        """
        return self._store.list_page(_open_key(""))

    def not_before(self, job_id: str) -> datetime | None:
        """What the last `open` of a job said; None when it said nothing or the job is open no more."""
        try:
            data = self._store.get(_open_key(job_id), max_bytes=MAX_MANIFEST_BYTES)
        except ObjectMissingError:
            return None
        return parse_record(_open_key(job_id), data, _not_before)

    def newest(self, *, limit: int, after: str = "") -> tuple[list[str], str]:
        """Ids of jobs, the newest first, and what to pass as `after` for the next ones ("": there are none)."""
        page = self._store.list_page(_INDEX, start_after=after and _INDEX + after, limit=limit)
        names = [info.key.removeprefix(_INDEX) for info in page.objects]
        return [_id_of(name) for name in names], "" if page.complete or not names else names[-1]

    def queue_position(self, job: Job) -> int:
        """How many open jobs are older than this one."""
        waiting = {_id_of(info.key) for info in self.open_jobs().objects}
        older = self._store.list_page(_INDEX, start_after=_index_key(job.created_at, job.job_id))
        return sum(_id_of(info.key) in waiting for info in older.objects)

    def expire(self, before: datetime) -> int:
        """Delete every trace of jobs that were recorded before a moment; say of how many.

        The entry in the index goes last, so that what a failure leaves behind is found the next time.
        """
        count = 0
        for info in self._store.list_objects(_INDEX, start_after=_index_key(to_timestamp(before), "")):
            job_id = _id_of(info.key)
            self._forget_label(job_id)
            for prefix in (f"outputs/{job_id}/", f"inputs/{job_id}/", f"jobs/{job_id}/", DEAD_LETTERS + job_id):
                for found in self._store.list_objects(prefix):
                    self._store.delete(found.key)
            self.close(job_id)
            self._store.delete(info.key)
            count += 1
        return count

    def _forget_label(self, job_id: str) -> None:
        with suppress(JobMissingError, RecordInvalidError):  # left behind by an earlier failure, or damaged
            forget_label(self._store, self.load(job_id))


def _not_before(record: dict[str, str]) -> datetime | None:
    return datetime.fromisoformat(record["not_before"]) if record["not_before"] else None


def _refuse_poisoned(state: JobState) -> None:
    if state.spent_attempts >= MAX_ATTEMPTS or len(state.attempts) >= _MAX_CLAIMS:
        raise JobPoisonedError(f"job {state.job_id}: no result in {state.spent_attempts} attempts")


def _index_key(created_at: str, job_id: str) -> str:
    milliseconds = int(datetime.fromisoformat(created_at).timestamp() * 1000)
    return f"{_INDEX}{_LAST_MILLISECOND - milliseconds:013d}-{job_id}"


def _id_of(key: str) -> str:
    return re.split("[-/]", key)[-1]


def _job_key(job_id: str) -> str:
    return f"jobs/{job_id}/job.json"


def _result_key(job_id: str) -> str:
    return f"jobs/{job_id}/result.json"


def _beat_key(job_id: str, attempt: int) -> str:
    return f"jobs/{job_id}/attempt-{attempt}.beat"


def _open_key(job_id: str) -> str:
    return f"open/{job_id}"

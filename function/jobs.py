"""Records of jobs in storage: what was asked, which attempts were made, how it ended.

    jobs/<job_id>/job.json         create-if-absent: the job
    jobs/<job_id>/attempt-<n>.json create-if-absent: the claim of attempt n
    jobs/<job_id>/result.json      create-if-absent, written last: the manifest; its presence means done

Status is derived from what is there and never stored. Credentials are never written.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from function.errors import JobPoisonedError, JobRunningError
from function.job import Job, JobResult, Output
from function.storage.objects import ObjectMissingError
from function.workflow import without_url_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.storage.objects import ObjectStore

MAX_ATTEMPTS = 3
MAX_MANIFEST_BYTES = 16 * 1024**2


def utc_now() -> datetime:
    """The wall clock that records are dated by."""
    return datetime.now(UTC)


def to_timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`, as CloudEvents and JavaScript write it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_manifest(result: JobResult) -> dict[str, Any]:
    """The manifest of a result: its fields without the bytes that a caller may get inline."""
    manifest = asdict(result)
    for output in manifest["outputs"]:
        del output["data"]
    manifest["outputs"] = list(manifest["outputs"])
    return manifest


def parse_manifest(data: bytes) -> JobResult:
    """Read a stored manifest; the inverse of `to_manifest`."""
    manifest = json.loads(data)
    return JobResult(**{**manifest, "outputs": tuple(Output(**output) for output in manifest["outputs"])})


def _to_json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


class JobRecords:
    """The records of all jobs, below one results store.

    Args:
        store: Where RESULTS_URL points.
        clock: Dates the records.
    """

    def __init__(self, store: ObjectStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._clock = clock

    def result(self, job_id: str) -> JobResult | None:
        """How the job ended, None while it has not."""
        try:
            return parse_manifest(self._store.get(f"jobs/{job_id}/result.json", max_bytes=MAX_MANIFEST_BYTES))
        except ObjectMissingError:
            return None

    def claim(self, job: Job) -> int:
        """Record the job and the next attempt at it; say which attempt, counted from 1.

        Raises:
            JobRunningError: Another pod claimed the same attempt at the same time.
            JobPoisonedError: The job has used up its attempts.
        """
        record = {
            "job_id": job.job_id,
            "label": job.label,
            "workflow": without_url_queries(job.workflow),
            "created_at": self._now(),
        }
        self._store.create(f"jobs/{job.job_id}/job.json", _to_json(record))
        attempt = self._attempts_made(job.job_id) + 1
        if attempt > MAX_ATTEMPTS:
            raise JobPoisonedError(f"job {job.job_id}: no result in {MAX_ATTEMPTS} attempts")
        claim = {"attempt": attempt, "pod": socket.gethostname(), "claimed_at": self._now()}
        if not self._store.create(f"jobs/{job.job_id}/attempt-{attempt}.json", _to_json(claim)):
            raise JobRunningError(f"job {job.job_id}: attempt {attempt} was claimed by another pod")
        return attempt

    def finish(self, result: JobResult) -> JobResult:
        """Store the manifest and return the one that counts: the first that was stored for this job."""
        key = f"jobs/{result.job_id}/result.json"
        if self._store.create(key, _to_json(to_manifest(result))):
            return result
        return parse_manifest(self._store.get(key, max_bytes=MAX_MANIFEST_BYTES))

    def _attempts_made(self, job_id: str) -> int:
        return sum(1 for _ in self._store.list_objects(f"jobs/{job_id}/attempt-"))

    def _now(self) -> str:
        return to_timestamp(self._clock())

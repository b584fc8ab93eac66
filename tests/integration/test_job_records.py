"""Job records over every kind of store."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from function.errors import JobPoisonedError, JobRunningError
from function.job import Job, JobResult, Output, random_job_id
from function.jobs import MAX_ATTEMPTS, JobRecords, parse_manifest, to_manifest, to_timestamp

if TYPE_CHECKING:
    from function.storage.objects import ObjectStore

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)


def job() -> Job:
    """Some job."""
    return Job(job_id=random_job_id(), workflow={"1": {"class_type": "X", "inputs": {}}}, label="mine")


def completed(job_id: str, attempt: int) -> JobResult:
    """A result with everything in it."""
    output = Output(
        node_id="4",
        kind="images",
        filename="ä b.png",
        subfolder="sub",
        media_type="image/png",
        size_bytes=3,
        sha256="00" * 32,
        width=1,
        height=2,
        url="s3://bucket/ä b.png",
    )
    return JobResult(
        job_id=job_id,
        status="completed",
        attempt=attempt,
        label="mine",
        finished_at=to_timestamp(NOW),
        outputs=(output,),
        texts={"7": ["hello"]},
        timings={"total": 0.1},
    )


def test_a_claimed_job_has_no_result_until_it_is_finished(store: ObjectStore) -> None:
    """Status is derived from what is stored."""
    records, new = JobRecords(store, clock=lambda: NOW), job()
    assert records.result(new.job_id) is None
    assert records.claim(new) == 1
    assert records.result(new.job_id) is None
    result = completed(new.job_id, 1)
    assert records.finish(result) == result == records.result(new.job_id)


def test_the_first_result_counts(store: ObjectStore) -> None:
    """A second attempt that ends later gets the first one's result."""
    records, new = JobRecords(store), job()
    first, second = (completed(new.job_id, records.claim(new)) for _ in range(2))
    assert (first.attempt, second.attempt) == (1, 2)
    assert records.finish(first) == first
    assert records.finish(second) == first


def test_a_job_is_poisoned_after_its_attempts(store: ObjectStore) -> None:
    """Three attempts without a result are enough."""
    records, new = JobRecords(store), job()
    assert [records.claim(new) for _ in range(MAX_ATTEMPTS)] == [1, 2, 3]
    with pytest.raises(JobPoisonedError, match="no result in 3 attempts"):
        records.claim(new)


def test_of_claims_at_the_same_time_each_attempt_goes_to_one(store: ObjectStore) -> None:
    """Whoever comes second is told that the job runs."""
    records, new = JobRecords(store), job()
    barrier = threading.Barrier(6)
    attempts: list[int] = []
    refused: list[str] = []

    def claim() -> None:
        barrier.wait()
        try:
            attempts.append(records.claim(new))
        except (JobRunningError, JobPoisonedError) as error:
            refused.append(error.code)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) == len(set(attempts))
    assert sorted(attempts) == list(range(1, len(attempts) + 1))
    assert len(attempts) + len(refused) == 6


def test_a_manifest_can_be_read_back_and_never_holds_bytes() -> None:
    """What is inline in an answer is not in the manifest."""
    result = completed("0" * 32, 1)
    manifest = to_manifest(result)
    assert "data" not in manifest["outputs"][0]
    assert manifest["finished_at"] == "2026-01-02T03:04:05.678Z"
    assert to_manifest(parse_manifest(json.dumps(manifest).encode())) == manifest

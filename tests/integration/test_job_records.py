"""Job records over every kind of store."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from function.credentials import parse_credentials
from function.errors import (
    DrainingError,
    EngineNotReadyError,
    EngineUnavailableError,
    IdempotencyConflictError,
    JobCancelledError,
    JobMissingError,
    JobPoisonedError,
    JobRunningError,
)
from function.handover import Conversion, UploadTarget, WebhookTarget
from function.job import Job, JobResult, Output, random_job_id
from function.jobs.labels import labelled, note_label
from function.jobs.manifest import parse_manifest, to_manifest, to_timestamp
from function.jobs.records import MAX_ATTEMPTS, JobRecords
from function.telemetry import Progress
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from function.errors import RetryableError
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


def submitted(records: JobRecords, new: Job | None = None) -> str:
    """The id of a job that was just recorded."""
    recorded = new or job()
    assert records.submit(recorded)
    return recorded.job_id


def test_a_job_comes_back_as_it_was_recorded(store: ObjectStore) -> None:
    """Models that its graph does not name among it; the pod that runs it knows nothing else."""
    records = JobRecords(store, clock=lambda: NOW)
    new = replace(job(), preloads=("vae/a.safetensors",), deadline_seconds=5)
    assert records.load(submitted(records, new)) == replace(new, created_at=to_timestamp(NOW))


def test_a_job_is_recorded_once_without_the_queries_of_its_urls(store: ObjectStore) -> None:
    """Submitting again changes nothing, and a token in a URL is not kept."""
    records = JobRecords(store, clock=lambda: NOW)
    secret = replace(job(), workflow={"1": {"class_type": "X", "inputs": {"url": "https://h/m.bin?token=secret"}}})
    assert records.submit(secret)
    assert not records.submit(replace(secret, label="other"))
    loaded = records.load(secret.job_id)
    assert (loaded.label, loaded.created_at) == ("mine", to_timestamp(NOW))
    assert "secret" not in str(loaded.workflow)


def test_an_unknown_job_is_a_clear_error(store: ObjectStore) -> None:
    """Loading and cancelling say so; the state has no time of creation."""
    records = JobRecords(store)
    assert records.state("0" * 32).created_at is None
    for use in (records.load, records.cancel):
        with pytest.raises(JobMissingError, match="there is no job 0000"):
            use("0" * 32)


def test_a_claimed_job_has_no_result_until_it_is_finished(store: ObjectStore) -> None:
    """Status is derived from what is stored."""
    records = JobRecords(store, clock=lambda: NOW)
    job_id = submitted(records)
    assert records.claim(job_id, new=True) == 1
    assert records.result(job_id) is None
    result = completed(job_id, 1)
    assert records.finish(result) == result == records.result(job_id)
    assert records.claim(job_id) == result
    assert records.standing(job_id) == result


@pytest.mark.parametrize("new", [True, False])
def test_a_job_that_is_held_can_not_be_claimed(store: ObjectStore, *, new: bool) -> None:
    """The error says for how long to wait, which is the lease."""
    records = JobRecords(store, lease_seconds=20)
    job_id = submitted(records)
    records.claim(job_id)
    with pytest.raises(JobRunningError, match="another pod is at attempt 1") as caught:
        records.claim(job_id, new=new)
    assert 1 <= caught.value.retry_after_seconds <= 22
    with pytest.raises(JobRunningError):
        records.standing(job_id)


def test_a_job_can_be_claimed_once_its_lease_is_over(store: ObjectStore) -> None:
    """Its pod is dead, and the attempt counts."""
    records = JobRecords(store, lease_seconds=1)
    job_id = submitted(records)
    assert records.claim(job_id) == 1
    wait_until(lambda: records.state(job_id).live_attempt(1) is None, what="the end of the lease")
    assert records.claim(job_id) == 2


def test_a_beat_keeps_the_lease_and_says_how_far_the_job_is(store: ObjectStore) -> None:
    """What is read is what was last said."""
    records = JobRecords(store, lease_seconds=1)
    job_id = submitted(records)
    records.claim(job_id)
    assert records.progress(records.state(job_id)) is None
    until = time.monotonic() + 3
    while time.monotonic() < until:
        records.beat(job_id, 1, Progress("executing", 0.5, "KSampler"))
        assert records.state(job_id).live_attempt(1)
        time.sleep(0.1)
    assert records.progress(records.state(job_id)) == Progress("executing", 0.5, "KSampler")


@pytest.mark.parametrize("reason", [DrainingError("shutting down"), EngineNotReadyError("no GPU")], ids=type)
def test_an_attempt_that_was_handed_back_leaves_the_job_to_the_next_at_once(
    store: ObjectStore, reason: RetryableError
) -> None:
    """A pod that shuts down, or whose engine does not start, costs the job no attempt."""
    records = JobRecords(store)
    job_id = submitted(records)
    for number in range(1, 2 * MAX_ATTEMPTS):
        assert records.claim(job_id) == number
        records.hand_back(job_id, number, reason)
    assert records.state(job_id).spent_attempts == 0
    assert records.claim(job_id) == 2 * MAX_ATTEMPTS


def test_a_job_is_poisoned_after_its_attempts(store: ObjectStore) -> None:
    """Three attempts in which the engine died are enough."""
    records = JobRecords(store)
    job_id = submitted(records)
    for number in range(1, MAX_ATTEMPTS + 1):
        assert records.claim(job_id) == number
        records.hand_back(job_id, number, EngineUnavailableError("it died"))
    with pytest.raises(JobPoisonedError, match="no result in 3 attempts") as caught:
        records.claim(job_id)
    result = records.fail(job_id, caught.value)
    assert result.error
    assert (result.status, result.attempt, result.error["code"]) == ("failed", MAX_ATTEMPTS, "job_poisoned")
    assert records.result(job_id) == result


def test_of_claims_at_the_same_time_one_wins(store: ObjectStore) -> None:
    """All others are told that the job runs."""
    records = JobRecords(store)
    job_id = submitted(records)
    barrier = threading.Barrier(6)
    won: list[object] = []
    refused: list[str] = []

    def claim() -> None:
        barrier.wait()
        try:
            won.append(records.claim(job_id, new=True))
        except JobRunningError as error:
            refused.append(error.code)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (won, len(refused)) == ([1], 5)


def test_the_first_result_counts(store: ObjectStore) -> None:
    """An attempt that lost its lease and ends later gets the other one's result."""
    records = JobRecords(store)
    job_id = submitted(records)
    first, second = completed(job_id, 1), completed(job_id, 2)
    assert records.finish(second) == second
    assert records.finish(first) == second


def test_a_cancelled_job_that_nobody_holds_ends_at_once(store: ObjectStore) -> None:
    """It has a failed result, and nobody can claim it any more."""
    records = JobRecords(store)
    job_id = submitted(records)
    records.cancel(job_id)
    result = records.result(job_id)
    assert result
    assert result.error
    assert (result.status, result.error["code"]) == ("failed", "cancelled")
    assert records.claim(job_id, new=True) == result
    records.cancel(job_id)
    assert records.result(job_id) == result


def test_a_cancelled_job_that_is_held_is_left_to_its_holder(store: ObjectStore) -> None:
    """The next one to claim it has to end it."""
    records = JobRecords(store)
    job_id = submitted(records)
    records.claim(job_id)
    records.cancel(job_id)
    assert records.state(job_id).cancelled
    assert records.result(job_id) is None
    records.hand_back(job_id, 1, DrainingError("shutting down"))
    with pytest.raises(JobCancelledError):
        records.claim(job_id)


def test_a_completed_job_can_not_be_cancelled(store: ObjectStore) -> None:
    """Nothing changes."""
    records = JobRecords(store)
    job_id = submitted(records)
    records.claim(job_id)
    result = records.finish(completed(job_id, 1))
    records.cancel(job_id)
    assert not records.state(job_id).cancelled
    assert records.result(job_id) == result


def test_an_id_belongs_to_one_request(store: ObjectStore) -> None:
    """The same key with another request is a conflict; the same request again is not."""
    records = JobRecords(store)
    first = replace(job(), request_sha256="aa")
    assert records.submit(first)
    assert not records.submit(first)
    with pytest.raises(IdempotencyConflictError, match="choose a new key"):
        records.submit(replace(first, request_sha256="bb"))


def test_an_asynchronous_job_is_open_until_it_is_closed(store: ObjectStore) -> None:
    """Also one whose recording was cut short after the job itself; not one that has ended."""
    records = JobRecords(store)
    new = replace(job(), asynchronous=True)
    records.submit(new)
    assert [info.key for info in records.open_jobs().objects] == [f"open/{new.job_id}"]
    records.close(new.job_id)
    assert not records.submit(new)
    assert len(records.open_jobs().objects) == 1
    records.close(new.job_id)
    records.finish(completed(new.job_id, 1))
    assert not records.submit(new)
    assert records.open_jobs().objects == ()


def test_a_job_with_a_webhook_is_open_too_and_its_request_has_time(store: ObjectStore) -> None:
    """Until it must have ended nobody else need care."""
    records = JobRecords(store)
    new = replace(job(), webhooks=(WebhookTarget("https://shop.example/"),))
    records.submit(new, not_before="2026-01-02T03:04:05.678Z")
    assert [info.key for info in records.open_jobs().objects] == [f"open/{new.job_id}"]
    assert records.not_before(new.job_id) == datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert records.load(new.job_id).webhooks == new.webhooks


def test_jobs_are_listed_newest_first_page_by_page(store: ObjectStore) -> None:
    """In the order of their times, whatever their ids."""
    ids = []
    for second in range(5):
        records = JobRecords(store, clock=lambda second=second: NOW + timedelta(seconds=second))
        ids.append(submitted(records))
    pages, after = [], ""
    while not pages or after:
        page, after = records.newest(limit=2, after=after)
        pages.append(page)
    newest = ids[::-1]
    assert pages == [newest[:2], newest[2:4], newest[4:]]


def test_a_job_whose_recording_was_cut_short_is_listed_once_it_comes_again(store: ObjectStore) -> None:
    """At the time at which it was recorded first."""
    records = JobRecords(store, clock=lambda: NOW)
    first, second = job(), job()
    records.submit(first)
    (entry,) = store.list_objects("index/")
    store.delete(entry.key)
    later = JobRecords(store, clock=lambda: NOW + timedelta(seconds=9))
    later.submit(second)
    assert not later.submit(first)
    assert later.newest(limit=9) == ([second.job_id, first.job_id], "")


def test_the_queue_position_counts_older_open_jobs(store: ObjectStore) -> None:
    """Those that have ended, and those that nobody needs to see through, don't count."""
    jobs = []
    for second in range(4):
        records = JobRecords(store, clock=lambda second=second: NOW + timedelta(seconds=second))
        jobs.append(replace(job(), asynchronous=second != 1))
        records.submit(jobs[-1])
    records.close(jobs[0].job_id)
    assert [records.queue_position(records.load(one.job_id)) for one in jobs[2:]] == [0, 1]


def test_expired_jobs_leave_no_trace_and_younger_ones_stay(store: ObjectStore) -> None:
    """Outputs, inputs, records and the index entry go together."""
    old, young = (JobRecords(store, clock=lambda day=day: NOW + timedelta(days=day)) for day in (0, 8))
    gone, kept = submitted(old, replace(job(), asynchronous=True)), submitted(young)
    for job_id in (gone, kept):
        store.put(f"outputs/{job_id}/1/a.png", b"x")
        store.put(f"inputs/{job_id}/0.png", b"x")
    assert young.expire(NOW + timedelta(days=1)) == 1
    assert not [info.key for info in store.list_objects() if gone in info.key]
    assert len([info.key for info in store.list_objects() if kept in info.key]) == 4


def test_a_job_is_recorded_with_what_it_was_asked_and_without_secrets(store: ObjectStore) -> None:
    """What is to become of its outputs comes back as it was; a credential and the query of a URL do not."""
    credentials = parse_credentials([{"url_pattern": "**", "auth": {"type": "bearer", "token": "s3cret"}}])
    asked = replace(
        job(),
        convert_output=Conversion("webp", {"quality": 80}),
        upload=UploadTarget("https://files.example/in/", credentials),
        webhooks=(WebhookTarget("https://shop.example/", "webhook_v2"), WebhookTarget("https://a.example/", "webhook")),
        request={"id": "mine", "input": {"image": "https://h/a.png?token=s3cret"}},
    )
    records = JobRecords(store)
    records.submit(asked)
    loaded = records.load(asked.job_id)
    assert loaded.upload == UploadTarget("https://files.example/in/")
    assert (loaded.convert_output, loaded.webhooks) == (asked.convert_output, asked.webhooks)
    assert loaded.request == {"id": "mine", "input": {"image": "https://h/a.png?..."}}
    assert b"s3cret" not in store.get(f"jobs/{asked.job_id}/job.json", max_bytes=10_000)


def test_jobs_are_found_by_their_clients_id_until_they_have_expired(store: ObjectStore) -> None:
    """Several may have the same one, of any form."""
    records = JobRecords(store, clock=lambda: NOW)
    jobs = [replace(job(), label=label) for label in ("ä/../*", "ä/../*", "other")]
    for one in jobs:
        note_label(store, one)
        records.submit(one)
    note_label(store, replace(job(), label=""))
    store.put(f"webhooks/dead/{jobs[0].job_id}.1", b"{}")
    assert set(labelled(store, "ä/../*")) == {jobs[0].job_id, jobs[1].job_id}
    assert labelled(store, "") == labelled(store, "nobody") == []
    assert records.expire(NOW + timedelta(days=1)) == 3
    assert list(store.list_objects()) == []


def test_a_manifest_can_be_read_back_and_never_holds_bytes() -> None:
    """What is inline in an answer is not in the manifest."""
    result = completed("0" * 32, 1)
    manifest = to_manifest(result)
    assert "data" not in manifest["outputs"][0]
    assert manifest["finished_at"] == "2026-01-02T03:04:05.678Z"
    assert to_manifest(parse_manifest(json.dumps(manifest).encode())) == manifest

"""The sweep over open jobs that nobody speaks for, on a real store."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from function.errors import RecordInvalidError
from function.jobs.dispatch import Dispatcher
from function.jobs.holders import Holders
from function.jobs.records import JobRecords
from function.jobs.sweep import Sweep
from tests.support.webhooks import ended_job

if TYPE_CHECKING:
    from pathlib import Path

    from function.storage.local import LocalStore

DAMAGE = {
    "no JSON": b"{",
    "another document": b'{"hello": "world"}',
    "a list": b"[]",
}


def forsaken_job(store: LocalStore, root: Path, *, records: dict[str, bytes] | None = None) -> str:
    """A job that ended an hour ago and was never closed; `records` are written over its own."""
    job_id = ended_job(store, "").job_id
    JobRecords(store).open(job_id)
    for key, data in (records or {}).items():
        store.put(key.format(job_id=job_id), data)
    an_hour_ago = time.time() - 3600
    os.utime(root / "open" / job_id, (an_hour_ago, an_hour_ago))
    return job_id


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_of_one_job_keeps_no_other_from_being_seen_to(
    local_store: LocalStore, tmp_path: Path, data: bytes
) -> None:
    """The damaged one stays open for a person to look at, whichever of them comes first."""
    root = tmp_path / "store"
    jobs = {forsaken_job(local_store, root) for _ in range(3)}
    damaged = forsaken_job(local_store, root, records={"jobs/{job_id}/job.json": data})
    records = JobRecords(local_store)
    closed: list[str] = []

    def see_off(job_id: str) -> None:
        records.load(job_id)
        closed.append(job_id)

    holders = Holders(local_store)
    dispatcher = Dispatcher("http://127.0.0.1:1/", records, holders, answer_seconds=1, on_ended=see_off)
    Sweep(records, dispatcher, on_ended=see_off).run()
    assert set(closed) == jobs
    assert damaged in {info.key.rpartition("/")[2] for info in records.open_jobs().objects}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_named_and_not_repeated(local_store: LocalStore, data: bytes) -> None:
    """Whether it is the job, its result, a beat or the mark of an open one."""
    records = JobRecords(local_store)
    job_id = ended_job(local_store, "").job_id
    records.claim(job_id, new=True)
    for name in ("job.json", "result.json", "attempt-1.beat"):
        local_store.put(f"jobs/{job_id}/{name}", data)
    local_store.put(f"open/{job_id}", data)
    for read in (
        lambda: records.load(job_id),
        lambda: records.result(job_id),
        lambda: records.progress(records.state(job_id)),
        lambda: records.not_before(job_id),
    ):
        with pytest.raises(RecordInvalidError) as caught:
            read()
        assert "is damaged" in caught.value.message
        assert "world" not in caught.value.message

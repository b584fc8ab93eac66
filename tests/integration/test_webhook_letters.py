"""Webhooks with files in them, in bounded memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from standardwebhooks import Webhook

from function.handover import WebhookTarget
from function.job import Job, JobResult, Output, random_job_id
from function.jobs.records import JobRecords
from tests.support.webhooks import SECRET, Receiver

if TYPE_CHECKING:
    from function.storage.local import LocalStore

MIB = 2**20

SENDER = r"""
import re, sys, time
from pathlib import Path
from function.storage import open_store
from tests.support.webhooks import make_webhooks

def peak_bytes():  # not getrusage's, which a process inherits from its parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

outcomes = []
webhooks = make_webhooks(open_store(sys.argv[1]), outcomes=outcomes)
webhooks.see_off(sys.argv[2])
while not outcomes:
    time.sleep(0.01)
before = peak_bytes()
outcomes.clear()
webhooks.see_off(sys.argv[3])
while not outcomes:
    time.sleep(0.01)
print(outcomes[0], peak_bytes() - before)
"""


def ended_with(store: LocalStore, url: str, sizes: list[int]) -> str:
    """The id of a job that has ended with files of these sizes, and whose `webhook_v2` wants them in base64."""
    job = Job(random_job_id(), {}, label="mine", webhooks=(WebhookTarget(url, "webhook_v2"),), request={"id": "mine"})
    outputs = []
    for number, size in enumerate(sizes):
        store.put(f"outputs/{job.job_id}/1/{number}.mp4", bytes(range(256)) * (size // 256))
        outputs.append(Output("1", "images", f"{number}.mp4", "", "video/mp4", size, ""))
    records = JobRecords(store)
    records.submit(job)
    records.finish(JobResult(job.job_id, "completed", 1, "mine", "2026-01-02T03:04:05.678Z", tuple(outputs)))
    return job.job_id


def test_large_files_are_sent_in_the_memory_of_a_few_pieces(local_store: LocalStore) -> None:
    """96 MiB in base64, signed as a whole, cost the sender a small part of that."""
    with Receiver() as receiver:
        small, large = (
            ended_with(local_store, receiver.url, [256]),
            ended_with(local_store, receiver.url, [48 * MIB] * 2),
        )
        command = [sys.executable, "-c", SENDER, local_store.url, small, large]
        sent = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        _, request = receiver.requests
    assert sent[0] == "delivered"
    assert int(sent[1]) < 16 * MIB
    Webhook(SECRET).verify(request.body, request.headers)
    document = json.loads(request.body)
    assert document["filenames"] == ["0.mp4", "1.mp4"]
    assert base64.b64decode(document["images"][1]) == bytes(range(256)) * (48 * MIB // 256)

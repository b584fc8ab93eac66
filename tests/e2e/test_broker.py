"""Uploads through a broker, with everything going wrong that may: each ends in one event, and in one only."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from events import ObjectCreated, parse_triggers
from function.uploads import split_store_url, upload_job_id
from tests.support.broker import Broker
from tests.support.engine import DATA
from tests.support.fleet import LEASE_SECONDS, kill
from tests.support.function_process import functions
from tests.support.processes import wait_until
from tests.support.proxy import CUT, REFUSED, HttpProxy, Seen
from tests.support.redelivery import deliver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fleet import Storage
    from tests.support.function_process import FunctionProcess

UPLOADS = 200
BROKEN_EACH = 20
"""Of so many uploads one is no job."""

SEED = 5
FAULTS = 0.08
AWAY_SECONDS = 2.0

TEMPLATE = {
    "workflow": {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
    },
    "parameters": {"image": {"input": "1.image", "type": "image"}},
}


@dataclass
class Upload:
    """One object and the record that tells of it."""

    key: str
    record: dict[str, Any]
    job_id: str

    @property
    def event_id(self) -> str:
        """Of the event that its job has to end in."""
        broken = self.key.endswith(".json")
        return f"{self.job_id}.{'failed' if broken else 'completed'}"


@dataclass
class Faults:
    """What goes wrong, in an order that is always the same."""

    random: random.Random
    away_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strike(self, seen: Seen) -> str:
        """Cut a delivery's connection, before the function gets it or after it has answered."""
        with self.lock:
            return CUT if seen.method == "POST" and self.random.random() < FAULTS else ""

    def refuse(self, _seen: Seen) -> str:
        """Storage is away for a while."""
        return REFUSED if time.monotonic() < self.away_until else ""


@dataclass
class Site:
    """Two functions behind a proxy, a broker before them, and a store behind them."""

    storage: Storage
    functions: list[FunctionProcess]
    proxy: HttpProxy
    broker: Broker
    faults: Faults

    def upload(self, run: str) -> list[Upload]:
        """Store what is to be run."""
        store = self.storage.sibling("uploads")
        bucket, prefix = split_store_url(store.url)
        picture = (DATA / "cases" / "in_64x48.png").read_bytes()
        uploads = []
        for number in range(UPLOADS):
            broken = number % BROKEN_EACH == 0
            key = f"{run}/{number}.json" if broken else f"invert/{run}/{number}.png"
            store.put(key, b'{"workflow": {}, "colour": 1}' if broken else picture)
            record = {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "eventName": "ObjectCreated:Put",
                "s3": {
                    "bucket": {"name": bucket},
                    "object": {"key": prefix + key, "eTag": "0", "sequencer": f"{number:016X}"},
                },
            }
            uploads.append(Upload(key, record, job_id_of(record)))
        return uploads

    def notify(self, upload: Upload) -> None:
        """Tell the broker of an upload, as an event source does."""
        headers = {
            "Content-Type": "application/json",
            "ce-specversion": "1.0",
            "ce-type": "com.amazonaws.s3.ObjectCreated:Put",
            "ce-source": "aws:s3.eu-central-1.uploads",
            "ce-id": upload.job_id,
        }
        self.broker.publish(headers, json.dumps(upload.record).encode())

    def disturb(self) -> None:
        """While jobs run, kill one function and then the other, and have storage go away."""
        for function in self.functions:
            time.sleep(4)
            kill(function)
            function.start()
            self.faults.away_until = time.monotonic() + AWAY_SECONDS


def job_id_of(record: dict[str, Any]) -> str:
    """The job that a record asks for."""
    (trigger,) = parse_records([record])
    return upload_job_id(trigger)


def parse_records(records: list[dict[str, Any]]) -> list[ObjectCreated]:
    """What a notice of these records asks for."""
    delivery = parse_triggers({"Content-Type": "application/json"}, json.dumps({"Records": records}).encode())
    return [trigger for trigger in delivery.triggers if isinstance(trigger, ObjectCreated)]


@pytest.fixture
def site(storage: Storage, tmp_path: Path) -> Iterator[Site]:
    """Everything started, the template stored."""
    storage.sibling("workflows").put("invert.json", json.dumps(TEMPLATE).encode())
    faults = Faults(random.Random(SEED))  # noqa: S311  (faults, no secret)
    with ExitStack() as stack:
        proxy = stack.enter_context(HttpProxy([], before=faults.strike, after=faults.strike))
        start = stack.enter_context(functions(tmp_path))
        broker = stack.enter_context(Broker(proxy.url))
        environ = {**storage.environ, "LEASE_SECONDS": str(LEASE_SECONDS), "DISPATCH_URL": broker.url}
        if storage.server:
            gateway = stack.enter_context(HttpProxy([storage.server.endpoint_url], before=faults.refuse))
            environ["AWS_ENDPOINT_URL"] = gateway.url
        started = [start(**environ) for _ in range(2)]
        proxy.targets += [function.url for function in started]
        yield Site(storage, started, proxy, broker, faults)


def check(site: Site, uploads: list[Upload]) -> None:
    """Wait for the end of every upload; each has one event, however often it came, and a whole manifest."""
    expected = {upload.event_id for upload in uploads}
    wait_until(
        lambda: expected <= site.broker.replies.keys() or bool(site.broker.dead_letters),
        what="an event for every upload",
        timeout_seconds=240,
    )
    assert site.broker.dead_letters == []
    assert site.broker.replies.keys() == expected
    assert {len(set(bodies)) for bodies in site.broker.replies.values()} == {1}
    manifests = [json.loads(bodies[0])["data"] for bodies in site.broker.replies.values()]
    assert Counter(len(manifest["outputs"]) for manifest in manifests) == {
        0: UPLOADS // BROKEN_EACH,
        1: UPLOADS - UPLOADS // BROKEN_EACH,
    }
    assert all(site.storage.manifest_is_whole(manifest) for manifest in manifests)


@pytest.mark.timeout(400)
def test_every_upload_ends_in_one_event_whatever_goes_wrong(site: Site) -> None:
    """Notices come one by one, some of them again, and the answers are the events, the same ones to the byte."""
    uploads = site.upload("single")
    for upload in uploads:
        site.notify(upload)
    site.disturb()
    check(site, uploads)
    for upload in uploads[::10]:
        site.notify(upload)
    again = [site.broker.replies[upload.event_id] for upload in uploads[::10]]
    wait_until(lambda: all(len(bodies) > 1 for bodies in again), what="the same events again")
    check(site, uploads)
    assert site.broker.statuses.keys() & {0, 409, 502, 503}


@pytest.mark.timeout(400)
def test_one_notice_of_all_uploads_ends_in_one_event_for_each(site: Site) -> None:
    """The notice is answered 202 empty; its jobs come back through the broker, and so do their ends."""
    uploads = site.upload("records")
    body = json.dumps({"Records": [upload.record for upload in uploads]}).encode()
    entry = site.functions[0]
    answer = deliver(lambda: entry.post("/", body), attempts=100)
    assert (answer.status, answer.body) == (202, b"")
    site.disturb()
    check(site, uploads)
    wait_until(lambda: site.storage.keys("open/") == [], what="the jobs to be seen off", timeout_seconds=120)

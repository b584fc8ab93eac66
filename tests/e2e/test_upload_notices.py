"""Uploaded documents that can't be run, and notices that come again when their object is no longer what it was."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from events import JOB_COMPLETED, JOB_REQUESTED
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import DATA, case
from tests.support.function_process import Background, functions
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engine import Answer
    from tests.support.function_process import FunctionFactory, FunctionProcess

EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s3", "ce-type": "com.amazonaws.s3"}


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """One function with a template that takes a picture."""
    with functions(tmp_path_factory.mktemp("uploads")) as start:
        process = start(LEASE_SECONDS="4")
        template = process.store / "workflows" / "scale.json"
        template.parent.mkdir(parents=True)
        shutil.copy(DATA / "cases" / "02_load_scale_save.json", template)
        yield process


def put(function: FunctionProcess, key: str, data: bytes) -> None:
    """Upload an object."""
    path = function.store / "uploads" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def notice(*keys: str) -> dict[str, Any]:
    """One message that tells of these uploads."""
    return {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": "uploads"}, "object": {"key": key, "eTag": "e", "sequencer": "01"}},
            }
            for key in keys
        ]
    }


def job_of(function: FunctionProcess, label: str) -> dict[str, Any]:
    """The status of the job with this label; {} while there is none with a result."""
    jobs = function.get("/jobs?limit=100").json["jobs"]
    return next((job for job in jobs if job["result"] and job["result"]["label"] == label), {})


def nested(depth: int) -> bytes:
    """A job document with lists in each other."""
    deep = b"[" * depth + b"]" * depth
    return b'{"workflow": {"1": {"class_type": "EmptyImage", "inputs": {"width": %s}}}}' % deep


DOCUMENTS = {
    "half a character": rb'{"workflow": {"1": {"class_type": "X", "inputs": {"text": "\ud83d"}}}}',
    "no number": b'{"workflow": {"1": {"class_type": "X", "inputs": {"text": NaN}}}}',
    "deep": nested(600),
    "a secret": json.dumps(
        {
            "workflow": {"1": {"class_type": "VAELoader", "inputs": {"vae_name": "https://host.test/m.pt?token=1"}}},
            "label": "a secret.json",
        }
    ).encode(),
    "no document": b"[]",
}


def test_documents_that_can_not_be_run_keep_no_other_upload_from_running(function: FunctionProcess) -> None:
    """Each is a job that failed, as is one whose message has no other."""
    for name, data in DOCUMENTS.items():
        put(function, f"{name}.json", data)
    put(function, "good.json", json.dumps({"workflow": case("01_empty_save"), "label": "good"}).encode())
    keys = [f"{name}.json" for name in DOCUMENTS]
    answer = function.post("/", notice(*keys, "good.json"))
    assert (answer.status, answer.body) == (202, b"")
    wait_until(lambda: job_of(function, "good") != {}, what="the good one")
    assert job_of(function, "good")["status"] == "completed"
    for key in keys:
        wait_until(lambda key=key: job_of(function, key) != {}, what=key)
        assert job_of(function, key)["result"]["error"]["code"] == "invalid_request", key
    for place, data in enumerate(DOCUMENTS.values()):
        put(function, f"alone-{place}.json", data)
        alone = function.post("/", notice(f"alone-{place}.json"), {**EVENT, "ce-id": f"alone {place}"})
        assert (alone.status, alone.json["data"]["status"]) == (200, "failed")


@pytest.mark.parametrize("depth", [180, 250, 600, 950, 5000])
def test_no_depth_of_an_event_is_too_much(function: FunctionProcess, depth: int) -> None:
    """It is run or refused, and never answered so that it is delivered again."""
    answer = function.post("/", nested(depth), {**EVENT, "ce-id": f"deep {depth}", "ce-type": JOB_REQUESTED})
    assert answer.status in {200, 400}, answer.body


def sent_again(function: FunctionProcess, key: str, *, as_event: bool) -> Answer:
    """The same notice once more."""
    return function.post("/", notice(key), {**EVENT, "ce-id": "again"} if as_event else {})


@pytest.mark.parametrize("as_event", [True, False])
def test_a_notice_that_comes_again_can_not_fail_what_runs(function: FunctionProcess, *, as_event: bool) -> None:
    """Though its object is another one by now; the job that was recorded is completed."""
    key = f"slow-{as_event}.json"
    put(function, key, json.dumps({"workflow": slow_workflow(40, size=1000 + as_event), "label": key}).encode())
    first = Background(lambda: function.post("/", notice(key), {**EVENT, "ce-id": key}))
    wait_until(lambda: function.engine_runs() > 0, what="the engine's work")
    put(function, key, b"{")
    again = sent_again(function, key, as_event=as_event)
    assert again.status == (409 if as_event else 202), again.body
    answer = first.join()
    assert (answer.status, answer.json["type"]) == (200, JOB_COMPLETED), answer.body
    assert sent_again(function, key, as_event=True).body == answer.body


def test_a_service_that_waits_for_a_job_ends_when_it_is_asked_to(function_factory: FunctionFactory) -> None:
    """The job stays open for others; an answer that may take as long as a job does is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        service = function_factory(ENGINE="none", DISPATCH_URL=url, DRAIN_SECONDS="1000")
        assert service.post("/jobs", {"workflow": case("01_empty_save")}).status == 202
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            service.close()
            service.signal(signal.SIGTERM)
            ended = threading.Event()
            threading.Thread(target=lambda: (service.wait(60), ended.set()), daemon=True).start()
            assert ended.wait(60), "the service waits for the answer"
    assert list((service.store / "results" / "open").iterdir())
    assert not list((service.store / "results" / "held").glob("*"))

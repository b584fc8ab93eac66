"""Two functions and two API services on one store: whoever is asked, the answer is the same."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from events import JOB_COMPLETED
from function.job import derived_job_id
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from tests.support.fleet import Fleet
    from tests.support.function_process import FunctionProcess

SMALL = {"workflow": case("01_empty_save")}
NO_WAIT = {"Prefer": "respond-async"}


def submitted(fleet: Fleet, document: dict[str, Any]) -> str:
    """The id of a job that any of the pods has recorded."""
    answer = fleet.everyone.post("/jobs", document)
    assert answer.status == 202, answer.body
    return str(answer.json["job_id"])


def events_of(pod: FunctionProcess, job_id: str) -> list[tuple[str, Any]]:
    """Everything that a pod streams about a job, to the end of the stream."""
    answer = urllib3.request("GET", f"{pod.url}/jobs/{job_id}/events", timeout=90, retries=False)
    frames = [frame.split("\n") for frame in answer.data.decode().split("\n\n") if frame.startswith("event: ")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def test_a_job_that_any_pod_took_is_the_same_to_all(fleet: Fleet) -> None:
    """Submitted in every way at one pod after the other, it runs once, and all four tell the same of it."""
    before = fleet.engine_runs()
    ids = [submitted(fleet, SMALL) for _ in range(4)]
    for _ in range(4):
        answer = fleet.everyone.post("/prompt", {"prompt": SMALL["workflow"]}, NO_WAIT)
        assert answer.status == 202
        ids.append(answer.json["job_id"])
    assert {fleet.ended(job_id)["status"] for job_id in ids} == {"completed"}
    assert fleet.engine_runs() == before + 8
    for job_id in ids:
        documents = [pod.get(f"/jobs/{job_id}").json for pod in fleet.pods]
        assert documents == documents[:1] * 4
        assert fleet.storage.manifest_is_whole(documents[0]["result"])
    wait_until(lambda: fleet.storage.keys("open/") == [], what="the jobs to be seen off")


def test_all_pods_list_the_same_jobs_the_newest_first(fleet: Fleet) -> None:
    """In the order in which they were submitted, page by page."""
    ids = [submitted(fleet, SMALL) for _ in range(4)]
    for job_id in ids:
        fleet.ended(job_id)
    for pod in fleet.pods:
        first = pod.get("/jobs?limit=3").json
        second = pod.get(f"/jobs?limit=3&after={first['next']}").json
        assert [job["job_id"] for job in (*first["jobs"], *second["jobs"])][:4] == ids[::-1]


def test_an_event_is_one_job_whoever_gets_it_how_often(fleet: Fleet) -> None:
    """A function answers with its end, a service without an engine 202; in the end all functions answer alike."""
    before = fleet.engine_runs()
    event_id = uuid.uuid4().hex
    job_id = derived_job_id(EVENT_SOURCE, event_id)
    for _ in range(4):
        answer = fleet.everyone.send_event(event_id, SMALL)
        assert answer.status in {200, 202, 409}
        assert answer.body == b"" or answer.status != 202
    assert fleet.ended(job_id)["status"] == "completed"
    replies = [function.send_event(event_id, SMALL) for function in fleet.functions]
    assert [reply.json["type"] for reply in replies] == [JOB_COMPLETED] * 2
    assert replies[0].body == replies[1].body
    assert fleet.engine_runs() == before + 1


@pytest.mark.parametrize("path", ["/jobs", "/prompt"])
def test_a_request_with_a_key_is_one_job_at_whichever_pods_it_arrives(fleet: Fleet, path: str) -> None:
    """Four times the same, one job and one run; another request with that key is refused everywhere."""
    before = fleet.engine_runs()
    headers = {"Idempotency-Key": uuid.uuid4().hex, **NO_WAIT}
    body, other = SMALL, {**SMALL, "label": "other"}
    if path == "/prompt":
        body, other = {"prompt": SMALL["workflow"]}, {"prompt": SMALL["workflow"], "id": "other"}
    answers = [fleet.everyone.post(path, body, headers) for _ in range(4)]
    assert [answer.status for answer in answers] == [202] * 4
    (job_id,) = {answer.json["job_id"] for answer in answers}
    assert {pod.post(path, other, headers).status for pod in fleet.pods} == {422}
    assert fleet.ended(job_id)["status"] == "completed"
    assert fleet.engine_runs() == before + 1


def test_every_pod_streams_a_job_to_its_end(fleet: Fleet) -> None:
    """Its outputs come before the last status, which holds the manifest."""
    job_id = submitted(fleet, {"workflow": slow_workflow(6)})
    for pod in fleet.pods:
        events = events_of(pod, job_id)
        assert [name for name, _ in events[-2:]] == ["output", "status"]
        assert events[-1][1]["status"] == "completed"
        assert events[-1][1]["result"]["outputs"] == [events[-2][1]]


def test_a_running_job_is_cancelled_by_any_pod(fleet: Fleet) -> None:
    """A service without an engine says `cancelling`; the engine that had it is interrupted and free again."""
    job_id = submitted(fleet, {"workflow": slow_workflow(60)})
    wait_until(lambda: sum(function.engine_runs() for function in fleet.functions) == 1, what="the engine's work")
    assert fleet.api.post(f"/jobs/{job_id}/cancel", {}).json["status"] in {"cancelling", "failed"}
    result = fleet.ended(job_id)["result"]
    assert (result["error"]["code"], result["outputs"]) == ("cancelled", [])
    wait_until(lambda: not any(function.engine_runs() for function in fleet.functions), what="free engines")


def test_a_queued_job_is_cancelled_by_any_pod(fleet: Fleet) -> None:
    """It ends at once, and no engine ever sees it, although two jobs before it go on."""
    before = fleet.engine_runs()
    busy = [submitted(fleet, {"workflow": slow_workflow(30)}) for _ in range(2)]
    wait_until(lambda: all(function.engine_runs() for function in fleet.functions), what="the engines' work")
    waiting = submitted(fleet, {"workflow": slow_workflow(30)})
    document = fleet.api.post(f"/jobs/{waiting}/cancel", {}).json
    assert (document["status"], document["result"]["error"]["code"]) == ("failed", "cancelled")
    for job_id in busy:
        assert fleet.api.post(f"/jobs/{job_id}/cancel", {}).status == 200
        fleet.ended(job_id)
    assert fleet.engine_runs() <= before + 2

"""`/jobs`, asynchronous jobs and uploads, in the one process of a laptop, and `comfyfn jobs`."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from events import JOB_COMPLETED, JOB_FAILED
from tests.e2e.test_command_line import comfyfn
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import DATA, case
from tests.support.function_process import functions
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engine import Answer
    from tests.support.function_process import FunctionFactory, FunctionProcess

NOWHERE = "0" * 32


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """One function with a photo in storage and a template that takes one."""
    with functions(tmp_path_factory.mktemp("jobs")) as start:
        process = start(LEASE_SECONDS="4")
        process.put_upload("in_64x48.png")
        template = process.store / "workflows" / "scale.json"
        template.parent.mkdir(parents=True)
        shutil.copy(DATA / "cases" / "02_load_scale_save.json", template)
        yield process


def submitted(function: FunctionProcess, workflow: dict[str, Any], **headers: str) -> str:
    """The id of a job that was just submitted."""
    answer = function.post("/jobs", {"workflow": workflow}, headers)
    assert answer.status == 202, answer.body
    assert answer.headers["location"] == f"/jobs/{answer.json['job_id']}"
    return str(answer.json["job_id"])


def status_of(function: FunctionProcess, job_id: str) -> dict[str, Any]:
    """A job's status document."""
    answer = function.get(f"/jobs/{job_id}")
    assert answer.status == 200, answer.body
    document: dict[str, Any] = answer.json
    return document


def ended(function: FunctionProcess, job_id: str) -> dict[str, Any]:
    """The result of a job, once there is one."""
    wait_until(lambda: status_of(function, job_id)["result"] is not None, what="the job's end")
    result: dict[str, Any] = status_of(function, job_id)["result"]
    return result


def upload(function: FunctionProcess, key: str, **attributes: str) -> Answer:
    """Send the notice of an upload: plain, or as an event with these attributes."""
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "uploads"}, "object": {"key": key, "size": 1, "eTag": "e", "sequencer": "01"}},
    }
    headers = {f"ce-{name}": value for name, value in attributes.items()}
    return function.post("/", {"Records": [record]}, headers)


def test_a_submitted_job_runs_and_is_closed(function: FunctionProcess) -> None:
    """202 at once; the result names stored outputs; nothing is left to look after."""
    job_id = submitted(function, case("01_empty_save"))
    result = ended(function, job_id)
    assert (result["job_id"], result["status"], len(result["outputs"])) == (job_id, "completed", 1)
    wait_until(lambda: not list((function.store / "results").glob("open/*")), what="the job to be closed")


def test_files_inside_a_submitted_workflow_are_kept_with_the_job(function: FunctionProcess) -> None:
    """The record holds a reference, no data; the job runs from the record."""
    workflow = case("02_load_scale_save")
    image = (DATA / "cases" / "in_64x48.png").read_bytes()
    workflow["1"]["inputs"]["image"] = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    job_id = submitted(function, workflow)
    assert ended(function, job_id)["status"] == "completed"
    record = json.loads((function.store / "results" / "jobs" / job_id / "job.json").read_bytes())
    assert record["workflow"]["1"]["inputs"]["image"].endswith(f"/results/inputs/{job_id}/0/inline.png")


def test_a_job_can_not_read_the_files_of_another(function: FunctionProcess) -> None:
    """The reference belongs to one job id."""
    other = submitted(function, case("01_empty_save"))
    workflow = case("02_load_scale_save")
    workflow["1"]["inputs"]["image"] = f"file://{function.store}/results/inputs/{other}/0/inline.png"
    answer = function.post("/jobs", {"workflow": workflow})
    assert (answer.status, answer.json["code"]) == (400, "input_refused")


def test_prompt_answers_at_once_if_it_is_asked_to(function: FunctionProcess) -> None:
    """`Prefer: respond-async`: 202 with the caller's own id and ours; the outputs are stored."""
    answer = function.post("/prompt", {"prompt": case("01_empty_save"), "id": "mine"}, {"Prefer": "respond-async"})
    assert (answer.status, answer.json["id"]) == (202, "mine")
    assert answer.headers["preference-applied"] == "respond-async"
    assert ended(function, answer.json["job_id"])["label"] == "mine"


@pytest.mark.parametrize("path", ["/jobs", "/prompt"])
def test_a_workflow_that_is_none_is_refused_before_anything_is_recorded(function: FunctionProcess, path: str) -> None:
    """So its Idempotency-Key may be used again for a good one."""
    name = "workflow" if path == "/jobs" else "prompt"
    headers = {"Idempotency-Key": f"again{path}", "Prefer": "respond-async"}
    refused = function.post(path, {name: {"1": {}}}, headers)
    assert (refused.status, refused.json["code"]) == (400, "invalid_workflow")
    accepted = function.post(path, {name: case("01_empty_save")}, headers)
    assert accepted.status == 202
    assert ended(function, accepted.json["job_id"])["status"] == "completed"


def test_secrets_in_urls_are_refused_where_they_would_have_to_be_kept(function: FunctionProcess) -> None:
    """An asynchronous job is run from its record, which keeps no queries."""
    workflow = case("10_upscale_srvgg")
    workflow["2"]["inputs"]["model_name"] = "https://example.com/x.safetensors?token=hunter2"
    answer = function.post("/jobs", {"workflow": workflow})
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert b"hunter2" not in answer.body


@pytest.mark.parametrize("path", ["/jobs", "/prompt"])
def test_the_same_request_under_the_same_key_is_the_same_job(function: FunctionProcess, path: str) -> None:
    """Another body under it is refused, and so is a key that is none."""
    name = "workflow" if path == "/jobs" else "prompt"
    key = {"Idempotency-Key": f"key-of{path}"}
    before = len(function.engine_history())
    first = function.post(path, {name: case("01_empty_save")}, key)
    if path == "/jobs":
        ended(function, first.json["job_id"])
    again = function.post(path, {name: case("01_empty_save")}, key)
    assert (first.status, first.json.get("job_id")) == (again.status, again.json.get("job_id"))
    assert first.json.get("images") == again.json.get("images")
    assert len(function.engine_history()) == before + 1
    other = function.post(path, {name: case("03_blur_invert_blend")}, key)
    assert (other.status, other.json["code"]) == (422, "idempotency_conflict")
    assert function.post(path, {name: case("01_empty_save")}, {"Idempotency-Key": "a b"}).status == 400


def test_a_prompt_that_failed_under_a_key_fails_alike_when_it_comes_again(function: FunctionProcess) -> None:
    """The status and the code are those of the first answer."""
    workflow = case("02_load_scale_save")
    workflow["1"]["inputs"]["image"] = "none.png"
    answers = [function.post("/prompt", {"prompt": workflow}, {"Idempotency-Key": "fails"}) for _ in range(2)]
    assert [(answer.status, answer.json["code"]) for answer in answers] == [(400, "input_missing")] * 2


def events_of(answer: Answer) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of each event of a stream."""
    frames = [frame.split("\n") for frame in answer.body.decode().split("\n\n") if frame.startswith("event: ")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def test_a_stream_tells_of_a_job_from_its_state_to_its_end(function: FunctionProcess) -> None:
    """Progress and outputs come before the status that ends it; a stream of an ended job has just that."""
    job_id = submitted(function, slow_workflow(4))
    live = events_of(function.get(f"/jobs/{job_id}/events"))
    assert "progress" in [name for name, _ in live]
    for events in (live, events_of(function.get(f"/jobs/{job_id}/events"))):
        assert [name for name, _ in events[-2:]] == ["output", "status"]
        assert events[-1][1]["status"] == "completed"
        assert events[-1][1]["result"]["outputs"] == [events[-2][1]]


def test_a_running_job_can_be_cancelled(function: FunctionProcess) -> None:
    """It ends soon, as cancelled, and the next job runs; cancelling again changes nothing."""
    job_id = submitted(function, slow_workflow(40))
    wait_until(lambda: status_of(function, job_id)["status"] == "running", what="the engine's work")
    assert function.post(f"/jobs/{job_id}/cancel", {}).json["status"] in {"cancelling", "failed"}
    assert ended(function, job_id)["error"]["code"] == "cancelled"
    assert function.post(f"/jobs/{job_id}/cancel", {}).json["result"]["error"]["code"] == "cancelled"
    assert ended(function, submitted(function, case("01_empty_save")))["status"] == "completed"


def test_a_waiting_job_can_be_cancelled(function: FunctionProcess) -> None:
    """At once, and the engine never sees it."""
    running = submitted(function, slow_workflow(20, size=1056))  # the engine has nothing of it in its cache
    wait_until(lambda: status_of(function, running)["status"] == "running", what="the engine's work")
    waiting = submitted(function, case("01_empty_save"))
    runs = len(function.engine_history())
    wait_until(lambda: status_of(function, waiting)["progress"] is not None, what="the job to wait in the pod")
    answer = function.post(f"/jobs/{waiting}/cancel", {})
    assert (answer.json["status"], answer.json["result"]["error"]["code"]) == ("failed", "cancelled")
    assert ended(function, running)["status"] == "completed"
    assert len(function.engine_history()) == runs + 1


def test_jobs_are_listed_newest_first(function: FunctionProcess) -> None:
    """Page by page, and by status."""
    ids = [submitted(function, case("01_empty_save")) for _ in range(3)]
    for job_id in ids:
        ended(function, job_id)
    first = function.get("/jobs?limit=2").json
    second = function.get(f"/jobs?limit=2&after={first['next']}").json
    listed = [job["job_id"] for job in first["jobs"] + second["jobs"]]
    assert listed[:3] == ids[::-1]
    assert {job["status"] for job in function.get("/jobs?status=failed&limit=100").json["jobs"]} <= {"failed"}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=../x"])
def test_a_page_that_can_not_be_is_refused(function: FunctionProcess, query: str) -> None:
    """The line names the parameter."""
    answer = function.get(f"/jobs?{query}")
    assert (answer.status, answer.json["error"].split(":")[0]) == (400, query.split("=", maxsplit=1)[0])


@pytest.mark.parametrize("job_id", [NOWHERE, "nonsense", "..%2f..%2fetc"])
def test_an_unknown_job_is_not_found(function: FunctionProcess, job_id: str) -> None:
    """On every route, in the same words."""
    for answer in (
        function.get(f"/jobs/{job_id}"),
        function.get(f"/jobs/{job_id}/events"),
        function.post(f"/jobs/{job_id}/cancel", {}),
    ):
        assert answer.status == 404
    assert function.send_event(f"of {job_id}", {"job_id": NOWHERE}).status == 404


def test_a_job_that_was_recorded_just_now_may_have_been_claimed(
    function: FunctionProcess,
) -> None:
    """A job that has ended, or that was cancelled while it waited, is answered from its result and not run again."""
    done = submitted(function, case("01_empty_save"))
    assert ended(function, done)["status"] == "completed"
    running = submitted(function, slow_workflow(40, size=1024))
    wait_until(lambda: status_of(function, running)["status"] == "running", what="the engine's work")
    cancelled = submitted(function, case("01_empty_save"))
    function.post(f"/jobs/{cancelled}/cancel", {})
    assert function.send_event("again", {"job_id": running}).status == 409
    assert ended(function, running)["status"] == "completed"
    runs = len(function.engine_history())
    for job_id, status in ((done, "completed"), (cancelled, "failed")):
        answer = function.send_event(f"of {job_id}", {"job_id": job_id})
        assert (answer.status, answer.json["data"]) == (200, ended(function, job_id))
        assert answer.json["data"]["status"] == status
    assert len(function.engine_history()) == runs


def test_an_upload_runs_the_template_of_its_folder(function: FunctionProcess) -> None:
    """As an event it is answered with its end; delivered again, byte for byte the same."""
    function.put_upload("scale/cat.png")
    event = {"specversion": "1.0", "id": "1", "source": "s3", "type": "com.amazonaws.s3"}
    first = upload(function, "scale/cat.png", **event)
    assert (first.status, first.json["type"]) == (200, JOB_COMPLETED), first.body
    assert first.json["data"]["label"] == "scale/cat.png"
    again = upload(function, "scale/cat.png", **{**event, "id": "2"})
    assert again.body == first.body


def test_a_raw_notice_is_answered_at_once(function: FunctionProcess) -> None:
    """Its sender waits for seconds only: 202, and the job runs."""
    function.put_upload("scale/dog.png")
    answer = upload(function, "scale/dog.png")
    assert (answer.status, answer.body) == (202, b"")
    found = function.get("/jobs").json["jobs"]
    assert ended(function, found[0]["job_id"])["label"] == "scale/dog.png"


def test_an_upload_that_can_not_run_is_a_failed_job(function: FunctionProcess) -> None:
    """The event is answered with its failure, so that somebody hears of it."""
    broken = function.store / "uploads" / "broken.json"
    broken.write_bytes(b"{")
    event = {"specversion": "1.0", "id": "3", "source": "s3", "type": "com.amazonaws.s3"}
    answer = upload(function, "broken.json", **event)
    assert (answer.status, answer.json["type"]) == (200, JOB_FAILED)
    assert answer.json["data"]["error"]["code"] == "invalid_request"


def test_an_upload_that_is_none_of_ours_is_acknowledged(function: FunctionProcess) -> None:
    """204 as an event; a raw notice of it makes no job either."""
    event = {"specversion": "1.0", "id": "4", "source": "s3", "type": "com.amazonaws.s3"}
    before = len(function.get("/jobs?limit=100").json["jobs"])
    assert upload(function, "photo.png", **event).status == 204
    assert upload(function, "photo.png").status == 202
    assert len(function.get("/jobs?limit=100").json["jobs"]) == before


def test_open_jobs_go_on_after_a_restart(function_factory: FunctionFactory) -> None:
    """A function that comes back takes up what it had accepted: the sweep finds what nobody speaks for."""
    function = function_factory(LEASE_SECONDS="4")
    job_id = submitted(function, case("01_empty_save"))
    ended(function, job_id)
    function.stop()
    for path in (function.store / "results" / "jobs" / job_id).iterdir():
        if path.name != "job.json":
            path.unlink()
    forsaken = function.store / "results" / "open" / job_id
    forsaken.parent.mkdir(exist_ok=True)
    forsaken.write_text('{"not_before": ""}')
    os.utime(forsaken, (time.time() - 60,) * 2)
    function.start()
    assert ended(function, job_id)["status"] == "completed"
    wait_until(lambda: not forsaken.exists(), what="the job to be closed")


def test_jobs_on_the_command_line(function: FunctionProcess) -> None:
    """List, show, cancel and run again, past the function's HTTP."""
    job_id = submitted(function, case("01_empty_save"))
    result = ended(function, job_id)
    environ = {"DATA_DIR": str(function.root / "data"), "DISPATCH_URL": function.url}
    listed = comfyfn("jobs", "ls", "--limit", "1", cwd=function.root, **environ)
    assert listed.stdout.split()[0] == job_id, listed.stderr
    assert "completed" in listed.stdout
    shown = comfyfn("jobs", "show", job_id, cwd=function.root, **environ)
    assert json.loads(shown.stdout)["result"] == result
    cancelled = comfyfn("jobs", "cancel", job_id, cwd=function.root, **environ)
    assert cancelled.stdout == f"{job_id} completed\n"
    again = comfyfn("jobs", "rerun", job_id, cwd=function.root, **environ)
    document = json.loads(again.stdout)
    assert (again.returncode, document["status"]) == (0, "completed"), again.stderr
    assert document["job_id"] != job_id
    missing = comfyfn("jobs", "show", NOWHERE, cwd=function.root, **environ)
    assert (missing.returncode, missing.stderr) == (1, f"Error: there is no job {NOWHERE}\n")


def test_a_job_with_a_file_in_it_can_be_run_again(function: FunctionProcess) -> None:
    """The new job has a copy of its own."""
    workflow = case("02_load_scale_save")
    data = base64.b64encode((DATA / "cases" / "in_64x48.png").read_bytes()).decode()
    workflow["1"]["inputs"]["image"] = f"data:image/png;base64,{data}"
    job_id = submitted(function, workflow)
    ended(function, job_id)
    environ = {"DATA_DIR": str(function.root / "data"), "DISPATCH_URL": function.url}
    again = json.loads(comfyfn("jobs", "rerun", job_id, cwd=function.root, **environ).stdout)
    assert again["status"] == "completed"
    assert (function.store / "results" / "inputs" / again["job_id"] / "0" / "inline.png").exists()

"""What each failure is answered with, and that the next good job succeeds."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from events import JOB_COMPLETED, JOB_FAILED
from function.job import derived_job_id
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.processes import child_pids, runs, wait_until
from tests.support.redelivery import deliver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess


def good_job_succeeds(function: FunctionProcess, event_id: str = "good") -> None:
    """The proof after each failure."""
    answer = function.send_event(event_id, {"workflow": case("01_empty_save")})
    assert (answer.status, answer.json["type"]) == (200, JOB_COMPLETED)


def failed(function: FunctionProcess, workflow: dict[str, Any], event_id: str = "bad") -> dict[str, Any]:
    """Send a job that fails for good; its error, the same in the reply event and in the manifest."""
    answer = function.send_event(event_id, {"workflow": workflow})
    assert (answer.status, answer.json["type"]) == (200, JOB_FAILED)
    assert function.result_path(event_id).exists()
    error: dict[str, Any] = answer.json["data"]["error"]
    return error


def test_a_missing_model_fails_the_job_before_the_engine_is_asked(function_factory: FunctionFactory) -> None:
    """The error names node, input, folder and key; `/prompt` answers 422."""
    function = function_factory()
    function.put_upload("in_64x48.png")
    error = failed(function, case("10_upscale_srvgg"))
    assert error["code"] == "model_missing"
    for part in ("node 2", "model_name", "upscale_models", "tiny_srvgg_x2.safetensors", "file://"):
        assert part in error["message"]
    answer = function.post("/prompt", {"prompt": case("10_upscale_srvgg")})
    assert (answer.status, answer.json["code"]) == (422, "model_missing")
    assert function.engine_history() == {}
    good_job_succeeds(function)


def test_a_missing_input_fails_the_job(function_factory: FunctionFactory) -> None:
    """The error names node, input and URL."""
    function = function_factory()
    error = failed(function, case("02_load_scale_save"))
    assert error["code"] == "input_missing"
    assert "uploads/in_64x48.png" in error["message"]
    good_job_succeeds(function)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "/etc/passwd", "s3://other/x.png", "http://127.0.0.1/x.png", "a.png [output]"),
        "data:image/png;base64,broken!",
    ],
)
def test_an_input_outside_the_uploads_is_refused(function: FunctionProcess, name: str) -> None:
    """No path, no other bucket, no private network; a file inside that is broken fails the job alike."""
    workflow = case("02_load_scale_save")
    workflow["1"]["inputs"]["image"] = name
    assert failed(function, workflow, f"input {name}")["code"] == "input_refused"


def test_an_output_prefix_outside_is_refused(function: FunctionProcess) -> None:
    """A workflow can't write beside its own directory."""
    workflow = case("01_empty_save")
    workflow["2"]["inputs"]["filename_prefix"] = "../../evil"
    assert failed(function, workflow, "prefix")["code"] == "input_refused"
    good_job_succeeds(function)


def test_a_model_larger_than_the_cache_fails_the_job(function_factory: FunctionFactory, model_files: Path) -> None:
    """Nothing is downloaded or evicted for a set that can never fit."""
    function = function_factory(LRU_CACHE_SIZE_GB="0.000001")
    function.put_upload("in_64x48.png")
    function.put_model("upscale_models", model_files / "upscale_models" / "tiny_srvgg_x2.safetensors")
    error = failed(function, case("10_upscale_srvgg"))
    assert error["code"] == "model_too_large"
    assert "LRU_CACHE_SIZE_GB" in error["message"]
    good_job_succeeds(function)


def test_a_failing_node_fails_the_job_and_is_named(function_factory: FunctionFactory, model_files: Path) -> None:
    """A model file that is no model passes every check before and fails in the loader."""
    function = function_factory()
    function.put_upload("in_64x48.png")
    garbage = function.root / "tiny_srvgg_x2.safetensors"
    garbage.write_bytes((model_files / "upscale_models" / "tiny_srvgg_x2.safetensors").read_bytes()[:-100])
    function.put_model("upscale_models", garbage)
    error = failed(function, case("10_upscale_srvgg"))
    assert (error["code"], error["node_id"], error["class_type"]) == ("node_failed", "2", "UpscaleModelLoader")
    assert "Traceback" not in str(error)
    good_job_succeeds(function)


def test_an_engine_killed_in_mid_run_is_retryable_and_the_redelivery_completes(
    function_factory: FunctionFactory,
) -> None:
    """503 with Retry-After and no manifest; the next attempt is the second."""
    function = function_factory()
    document = {"workflow": slow_workflow()}
    call = Background(lambda: function.send_event("slow", document))
    engine = function.engine_pid
    wait_until(lambda: b'"executing"' in function.get("/jobs/" + job_of("slow")).body, what="the engine's work")
    os.kill(engine, signal.SIGKILL)
    answer = call.join()
    assert (answer.status, answer.json["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert not function.result_path("slow").exists()
    again = function.send_event("slow", document)
    assert (again.status, again.json["type"], again.json["data"]["attempt"]) == (200, JOB_COMPLETED, 2)


def job_of(event_id: str) -> str:
    """The id of an event's job."""
    return derived_job_id(EVENT_SOURCE, event_id)


def test_a_job_that_kills_the_engine_every_time_is_given_up(function_factory: FunctionFactory) -> None:
    """After three attempts without a result the job fails as poisoned."""
    function = function_factory()
    for _ in range(3):
        call = Background(lambda: function.send_event("poison", {"workflow": slow_workflow()}))
        wait_until(lambda: b'"executing"' in function.get("/jobs/" + job_of("poison")).body, what="the engine's work")
        os.kill(function.engine_pid, signal.SIGKILL)
        assert call.join().status == 503
        wait_until(function.is_ready, what="the engine's restart")
    assert failed(function, slow_workflow(), "poison")["code"] == "job_poisoned"
    good_job_succeeds(function)


def test_kill_9_of_the_worker_leaves_no_engine_and_gunicorn_starts_both_again(
    function_factory: FunctionFactory,
) -> None:
    """The engine dies with the worker; the function comes back by itself."""
    function = function_factory()
    worker, engine = function.worker_pid, function.engine_pid
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not runs(engine), what="the engine's end")
    wait_until(lambda: len(_workers(function)) == 1 and function.is_ready(), what="the restart")
    assert function.worker_pid != worker
    good_job_succeeds(function)


def test_what_jobs_of_a_killed_worker_left_goes_at_the_next_start(function_factory: FunctionFactory) -> None:
    """Inputs, outputs and converted files; what else lies there is not ours."""
    function = function_factory()
    worker, job_id = function.worker_pid, job_of("killed")
    folders = {name: function.root / "data" / name for name in ("input", "output")}
    for folder in folders.values():
        for name in (job_id, f"{job_id}.converted", "3d"):
            (folder / name / "sub").mkdir(parents=True)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in _workers(function) and function.is_ready(), what="the restart")
    good_job_succeeds(function)
    names = {place: {path.name for path in folder.iterdir()} for place, folder in folders.items()}
    assert job_id not in names["input"]
    assert {name for name in names["output"] if name.startswith(job_id)} == set()
    assert "3d" in names["input"] & names["output"]


def test_kill_9_of_the_worker_in_mid_run_costs_one_attempt(function_factory: FunctionFactory) -> None:
    """The client loses its connection; the event that is delivered again completes in the second attempt."""
    function = function_factory(LEASE_SECONDS="4")
    call = Background(lambda: function.send_event("slow", {"workflow": slow_workflow()}))
    wait_until(lambda: b'"executing"' in function.get("/jobs/" + job_of("slow")).body, what="the engine's work")
    worker = function.worker_pid
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(urllib3.exceptions.HTTPError):
        call.join()
    wait_until(lambda: worker not in _workers(function) and function.is_ready(), what="the restart")
    again = deliver(lambda: function.send_event("slow", {"workflow": slow_workflow()}))
    assert (again.status, again.json["type"], again.json["data"]["attempt"]) == (200, JOB_COMPLETED, 2)
    good_job_succeeds(function)


def _workers(function: FunctionProcess) -> list[int]:
    return [pid for pid in child_pids(function.pid) if runs(pid)]

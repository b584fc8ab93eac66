"""Outputs in storage while the job still runs, and what is left when it fails."""

from __future__ import annotations

import hashlib
import shlex
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from events import JOB_COMPLETED, JOB_FAILED
from function.cli.local import free_port
from function.job import derived_job_id
from tests.e2e.test_main_job import slow_workflow
from tests.e2e.test_serving import start_slow_job
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.processes import wait_until
from tests.support.redelivery import deliver
from tests.support.storage import FlakyProxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.function_process import Answer, FunctionFactory, FunctionProcess
    from tests.support.storage import S3Server

JOB_ID = derived_job_id(EVENT_SOURCE, "e1")
EARLY_KEY = f"outputs/{JOB_ID}/1/early_00001_.png"


def early_and_late(blurs: int = 12) -> dict[str, Any]:
    """A workflow that saves its first image at once and its last one after seconds."""
    early = {"class_type": "SaveImage", "inputs": {"images": ["0", 0], "filename_prefix": "early"}}
    return slow_workflow(blurs) | {"early": early}


def send_and_wait_for_early(function: FunctionProcess, document: dict[str, Any]) -> Background:
    """Send a job to a function with local storage and wait until its first output lies there."""
    call = Background(lambda: function.send_event("e1", document))
    wait_until((function.store / "results" / EARLY_KEY).exists, what="the early output")
    return call


def progress_of(function: FunctionProcess) -> dict[str, Any]:
    """How far the job is."""
    progress: dict[str, Any] = function.get(f"/jobs/{JOB_ID}").json["progress"]
    return progress


def stored_outputs(function: FunctionProcess) -> list[Path]:
    """Every file below the job's outputs."""
    return [path for path in (function.store / "results" / "outputs").rglob("*") if path.is_file()]


def good_job_succeeds(function: FunctionProcess) -> None:
    """The proof after each failure."""
    answer = function.send_event("good", {"workflow": case("01_empty_save")})
    assert (answer.status, answer.json["type"]) == (200, JOB_COMPLETED)


def test_the_first_output_is_in_storage_while_the_job_still_runs(function_factory: FunctionFactory) -> None:
    """It is stored and whole before the engine ends; the manifest describes both in the order of the history."""
    function = function_factory()
    call = send_and_wait_for_early(function, {"workflow": early_and_late()})
    early = (function.store / "results" / EARLY_KEY).read_bytes()
    assert progress_of(function)["stage"] == "executing"
    assert not function.result_path("e1").exists()
    answer = call.join()
    assert answer.json["type"] == JOB_COMPLETED
    outputs = {output["filename"]: output for output in answer.json["data"]["outputs"]}
    assert outputs.keys() == {"early_00001_.png", "slow_00001_.png"}
    assert outputs["early_00001_.png"]["sha256"] == hashlib.sha256(early).hexdigest()
    for name, output in outputs.items():
        assert hashlib.sha256(function.get(f"/outputs/{JOB_ID}/1/{name}").body).hexdigest() == output["sha256"]
    timings = answer.json["data"]["timings"]
    assert timings["storing"] < timings["executing"]


def fail_in_the_last_node() -> dict[str, Any]:
    """A workflow whose last node can't write where a computed prefix points; its first output was good."""
    workflow = early_and_late()
    workflow["prefix"] = {"class_type": "PrimitiveString", "inputs": {"value": "../../evil"}}
    workflow["save"]["inputs"]["filename_prefix"] = ["prefix", 0]
    return {"workflow": workflow}


@pytest.mark.parametrize(
    ("make_document", "code"),
    [
        (fail_in_the_last_node, "node_failed"),
        (lambda: {"workflow": early_and_late(blurs=200), "deadline_seconds": 8}, "deadline_exceeded"),
    ],
)
def test_a_job_that_fails_after_its_first_output_leaves_none(
    function_factory: FunctionFactory, make_document: Callable[[], dict[str, Any]], code: str
) -> None:
    """The manifest says why it failed and links to nothing; the early output is gone from storage."""
    function = function_factory()
    answer = send_and_wait_for_early(function, make_document()).join()
    assert answer.json["type"] == JOB_FAILED
    manifest = answer.json["data"]
    assert (manifest["error"]["code"], manifest["outputs"]) == (code, [])
    assert stored_outputs(function) == []
    good_job_succeeds(function)


@pytest.mark.parametrize("fails", [True, False])
def test_a_computed_prefix_leaves_no_file_in_the_output_directory(
    function_factory: FunctionFactory, *, fails: bool
) -> None:
    """The job's folder does not hold what such a node wrote; it would stay until the disk is full."""
    function = function_factory()
    workflow = case("01_empty_save") | {"name": {"class_type": "PrimitiveString", "inputs": {"value": "sub/computed"}}}
    saver = next(node for node in workflow.values() if "filename_prefix" in node["inputs"])
    saver["inputs"]["filename_prefix"] = ["name", 0]
    if fails:
        workflow["bad"] = {"class_type": "PrimitiveString", "inputs": {"value": "../../evil"}}
        workflow["late"] = {**saver, "inputs": {**saver["inputs"], "filename_prefix": ["bad", 0]}}
    answer = function.send_event("e1", {"workflow": workflow})
    assert answer.json["type"] == (JOB_FAILED if fails else JOB_COMPLETED)
    assert [path for path in (function.root / "data" / "output").rglob("*") if path.is_file()] == []


def test_storage_that_goes_away_after_the_first_output_is_retryable(
    function_factory: FunctionFactory, s3_server: S3Server
) -> None:
    """503 and no manifest; the next delivery completes, and its manifest links only to what that attempt stored."""
    bucket = s3_server.make_bucket()
    urls = {f"{name}_URL": f"s3://{bucket}/{name.lower()}" for name in ("MODELS", "UPLOADS", "RESULTS")}
    with (
        s3_server.store(f"s3://{bucket}/results") as results,
        FlakyProxy(s3_server.endpoint_url, cuts=[]) as proxy,
    ):
        function = function_factory(**{**s3_server.environ, "AWS_ENDPOINT_URL": proxy.url}, **urls)
        call = Background(lambda: function.send_event("e1", {"workflow": early_and_late()}))
        wait_until(lambda: [info.key for info in results.list_objects("outputs/")] == [EARLY_KEY], what="early output")
        proxy.down = True
        proxy.hang_up()
        answer = call.join()
        assert (answer.status, answer.json["code"]) == (503, "storage_unavailable")
        assert list(results.list_objects(f"jobs/{JOB_ID}/result")) == []
        proxy.down = False
        good_job_succeeds(function)
        again = deliver(lambda: function.send_event("e1", {"workflow": early_and_late()}))
        assert_linked(again, s3_server)


def assert_linked(answer: Answer, server: S3Server) -> None:
    """Every output of a completed second attempt is an object with the bytes that its manifest names."""
    assert (answer.json["type"], answer.json["data"]["attempt"]) == (JOB_COMPLETED, 2)
    with closing(server.make_client()) as client:
        for output in answer.json["data"]["outputs"]:
            bucket, _, key = output["url"].removeprefix("s3://").partition("/")
            with closing(client.get_object(Bucket=bucket, Key=key)["Body"]) as body:
                assert hashlib.sha256(body.read()).hexdigest() == output["sha256"]
        assert len(answer.json["data"]["outputs"]) == 2


def test_animations_subfolders_and_texts_are_outputs(function_factory: FunctionFactory) -> None:
    """An animated WebP in a folder of its own, a text that a node shows, and no preview."""
    function = function_factory()
    frames = {"width": 16, "height": 8, "batch_size": 3, "color": 255}
    animation = {"images": ["0", 0], "fps": 6.0, "lossless": True, "quality": 80, "method": "fastest"}
    workflow = {
        "0": {"class_type": "EmptyImage", "inputs": frames},
        "1": {"class_type": "SaveAnimatedWEBP", "inputs": animation | {"filename_prefix": "films/a/clip"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["0", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": "hello"}},
    }
    manifest = function.send_event("e1", {"workflow": workflow}).json["data"]
    (output,) = manifest["outputs"]
    assert (output["subfolder"], output["filename"]) == ("films/a", "clip_00001_.webp")
    assert (output["media_type"], output["width"], output["height"]) == ("image/webp", 16, 8)
    assert manifest["texts"] == {"3": ["hello"]}
    stored = function.get(f"/outputs/{JOB_ID}/1/films/a/clip_00001_.webp")
    assert hashlib.sha256(stored.body).hexdigest() == output["sha256"]


def test_a_workflow_that_only_shows_pictures_delivers_those(function_factory: FunctionFactory) -> None:
    """Previews are its outputs, in the answer and in storage; beside a saved file they are left out."""
    function = function_factory()
    workflow = case("01_empty_save")
    workflow["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    answer = function.post("/prompt", {"prompt": workflow})
    assert (answer.status, len(answer.json["images"])) == (200, 1)
    (output,) = function.send_event("preview", {"workflow": workflow}).json["data"]["outputs"]
    assert (output["node_id"], output["kind"], output["media_type"], output["subfolder"]) == (
        "2",
        "images",
        "image/png",
        "",
    )
    assert stored_outputs(function)[0].stat().st_size == output["size_bytes"]
    both = workflow | {"save": case("01_empty_save")["2"]}
    (output,) = function.send_event("both", {"workflow": both}).json["data"]["outputs"]
    assert output["node_id"] == "save"


def test_outputs_of_an_engine_that_writes_elsewhere_are_streamed_from_it(
    function_factory: FunctionFactory, tmp_path: Path
) -> None:
    """Its output directory is not ours: the files come through its `/view`, the same bytes."""
    elsewhere = tmp_path / "elsewhere"
    function = function_factory(**engine_that_writes_to(elsewhere, tmp_path / "ComfyUI"))
    assert len(function.post("/prompt", {"prompt": case("01_empty_save")}).json["images"]) == 1
    (output,) = function.send_event("elsewhere", {"workflow": case("01_empty_save")}).json["data"]["outputs"]
    (stored,) = stored_outputs(function)
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == output["sha256"]
    assert stored.read_bytes() in [path.read_bytes() for path in elsewhere.rglob("*.png")]
    assert (output["width"], output["height"]) == (64, 64)


def test_an_engine_that_writes_elsewhere_is_not_replaced_before_its_files_are_read(
    function_factory: FunctionFactory, tmp_path: Path
) -> None:
    """Over its memory limit after every job, it stays, and the GPU is held, until the outputs are stored."""
    settings = engine_that_writes_to(tmp_path / "elsewhere", tmp_path / "ComfyUI")
    function = function_factory(**settings, ENGINE_MEMORY_LIMIT_GB="0.001")
    for number in range(3):
        engine = function.engine_pid
        answer = function.send_event(f"elsewhere-{number}", {"workflow": case("01_empty_save")})
        assert (answer.status, answer.json["type"], answer.json["data"]["attempt"]) == (200, JOB_COMPLETED, 1)
        wait_until(lambda: function.is_ready() and function.engine_pid != engine, what="the new engine")  # noqa: B023  (called at once)
    assert len(stored_outputs(function)) == 3


def engine_that_writes_to(elsewhere: Path, home: Path) -> dict[str, str]:
    """Settings of a function whose engine has an output directory of its own."""
    home.mkdir()
    flags = ["--output-directory", str(elsewhere)]  # the last one counts
    (home / "main.py").write_text(
        "import os, sys\n"
        f"argv = [sys.executable, '-m', 'function.engine.embedded', *sys.argv[1:], *{flags}]\n"
        "os.execv(sys.executable, argv)\n"
    )
    command = shlex.join([sys.executable, "main.py", "--port", str(free_port())])
    return {"ENGINE": "comfyui", "COMFY_HOME": str(home), "CMD": command}


def test_a_running_job_shows_its_node_and_how_many_there_are(function_factory: FunctionFactory) -> None:
    """`GET /jobs/<id>` has them, with the stage and the fraction of the whole."""
    function = function_factory()
    call = start_slow_job(function, "e1")
    wait_until(lambda: progress_of(function).get("nodes_done", 0) >= 2, what="two nodes' end")
    progress = progress_of(function)
    assert (progress["stage"], progress["class_type"], progress["nodes_total"]) == ("executing", "ImageBlur", 14)
    assert progress["node_id"] in slow_workflow()
    assert call.join().json["type"] == JOB_COMPLETED

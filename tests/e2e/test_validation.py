"""A workflow that can't run is refused before its models are brought, even while the engine boots."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from events import JOB_COMPLETED, JOB_FAILED
from function.cli.local import free_port
from tests.e2e.test_serving import start_slow_job
from tests.support.engine import case
from tests.support.processes import child_pids, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess

# An engine that boots only once the file `hold` is gone.
SLOW_START = """
import os, sys, time
while os.path.exists("hold"):
    time.sleep(0.02)
os.execv(sys.executable, [sys.executable, "-m", "function.engine.embedded", *sys.argv[1:]])
"""


def upscale_and(**more: dict[str, Any]) -> dict[str, Any]:
    """A workflow that needs a model, with more nodes."""
    return case("10_upscale_srvgg") | more


def with_files(function: FunctionProcess, model_files: Path) -> FunctionProcess:
    """Put what the workflow needs into storage."""
    function.put_upload("in_64x48.png")
    function.put_model("upscale_models", model_files / "upscale_models" / "tiny_srvgg_x2.safetensors")
    return function


def refusal(function: FunctionProcess, workflow: dict[str, Any]) -> dict[str, Any]:
    """The answer to a workflow that is refused for its form."""
    answer = function.post("/prompt", {"prompt": workflow})
    assert (answer.status, answer.json["code"]) == (400, "invalid_workflow")
    return dict(answer.json)


def test_an_unknown_class_is_refused_while_the_engine_boots(
    function_factory: FunctionFactory, model_files: Path, tmp_path: Path
) -> None:
    """A new process knows the nodes from disk; no model is brought; a good job waits for the engine."""
    home = tmp_path / "ComfyUI"
    home.mkdir()
    (home / "main.py").write_text(SLOW_START)
    command = shlex.join([sys.executable, "main.py", "--port", str(free_port())])
    function = with_files(function_factory(ENGINE="comfyui", COMFY_HOME=str(home), CMD=command), model_files)
    wait_until((function.root / "data" / "engine" / "nodes.json").exists, what="the nodes on disk")
    (home / "hold").touch()
    worker = function.worker_pid
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker_is_new(function, worker), what="the next worker")
    error = refusal(function, upscale_and(x={"class_type": "NoSuchNode", "inputs": {}}))
    assert "node x (NoSuchNode)" in error["error"]
    assert error["node_errors"]["x"]["errors"][0]["type"] == "missing_node_type"
    assert function.get("/ready").status == 503
    assert list((home / "models").rglob("*.safetensors")) == []
    (home / "hold").unlink()
    assert function.post("/prompt", {"prompt": upscale_and()}).status == 200
    assert list((home / "models").rglob("*.safetensors")) != []


def worker_is_new(function: FunctionProcess, old: int) -> bool:
    """Whether another worker than this one answers."""
    workers = child_pids(function.pid)
    return bool(workers) and old not in workers and function.get("/health").status == 200


def test_a_stored_job_that_cannot_run_fails_with_comfyuis_node_errors(
    function_factory: FunctionFactory, model_files: Path
) -> None:
    """The failed event and the manifest carry them; no model is brought and the engine is not asked."""
    function = with_files(function_factory(), model_files)
    wait_until((function.root / "data" / "engine" / "nodes.json").exists, what="the nodes on disk")
    bad = upscale_and(x={"class_type": "EmptyImage", "inputs": {"width": 0}})
    bad["4"]["inputs"]["images"] = ["x", 1]
    answer = function.send_event("bad", {"workflow": bad})
    assert (answer.status, answer.json["type"]) == (200, JOB_FAILED)
    error = answer.json["data"]["error"]
    assert error["code"] == "invalid_workflow"
    assert {one["type"] for one in error["node_errors"]["x"]["errors"]} == {
        "required_input_missing",
        "value_smaller_than_min",
    }
    assert function.result_path("bad").exists()
    assert list((function.root / "data" / "models").rglob("*.safetensors")) == []
    assert function.engine_history() == {}


def test_nodes_and_sizes_that_the_operator_does_not_allow_are_refused(function_factory: FunctionFactory) -> None:
    """Node, class and setting are named."""
    function = function_factory(DENIED_NODES="Image*", MAX_PIXELS="4096")
    answer = function.post("/prompt", {"prompt": upscale_and()})
    assert (answer.status, answer.json["code"]) == (422, "node_refused")
    assert answer.json["error"] == "node 3: class 'ImageUpscaleWithModel' is refused by DENIED_NODES, Image*"
    small = case("01_empty_save")
    assert function.post("/prompt", {"prompt": small}).status == 200
    small["1"]["inputs"]["width"] = 65
    answer = function.post("/prompt", {"prompt": small})
    assert (answer.status, answer.json["code"]) == (422, "budget_exceeded")
    assert "MAX_PIXELS=4096" in answer.json["error"]


def test_a_workflow_that_cannot_run_is_refused_while_another_job_runs(function_factory: FunctionFactory) -> None:
    """It doesn't wait for the GPU: the prompt is refused, the stored job has its failed manifest."""
    function = function_factory()
    wait_until((function.root / "data" / "engine" / "nodes.json").exists, what="the nodes on disk")
    running = start_slow_job(function)
    bad = case("01_empty_save") | {"x": {"class_type": "NoSuchNode", "inputs": {}}}
    assert "node x (NoSuchNode)" in refusal(function, bad)["error"]
    answer = function.send_event("bad", {"workflow": bad})
    assert (answer.status, answer.json["type"]) == (200, JOB_FAILED)
    assert answer.json["data"]["attempt"] == 1
    assert function.result_path("bad").exists()
    assert running.running
    assert running.join().json["type"] == JOB_COMPLETED
    assert len(function.engine_history()) == 1

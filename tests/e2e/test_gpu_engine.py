"""The function with a real ComfyUI on a real GPU: memory that runs out, a context that breaks, what NVML tells."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from events import JOB_COMPLETED
from function.cli.local import free_port
from function.gpu import read_gpus
from tests.e2e.test_command_line import comfyfn
from tests.support.engine import case, comfyui_command
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from tests.support.function_process import FunctionFactory, FunctionProcess

GIB = 2**30
NODES = Path(__file__).parents[1] / "data" / "gpu_nodes"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFY_HOME" not in os.environ, reason="needs a real ComfyUI in COMFY_HOME"),
    pytest.mark.skipif(not read_gpus(visible=None).gpus, reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def function(function_factory: FunctionFactory, tmp_path: Path, model_files: Path) -> FunctionProcess:
    """A function whose ComfyUI works on the GPU and has the nodes of these tests."""
    base = tmp_path / "on-gpu"
    shutil.copytree(NODES, base / "custom_nodes" / "gpu_nodes")
    (base / "index.html").write_text("<!doctype html>")
    flags = ["--whitelist-custom-nodes", "gpu_nodes", "--port", str(free_port()), "--base-directory", str(base)]
    function = function_factory(CMD=shlex.join([*comfyui_command(base), *flags]))
    function.put_upload("in_64x48.png")
    function.put_model("upscale_models", model_files / "upscale_models" / "tiny_srvgg_x2.safetensors")
    return function


def workflow(class_type: str, **inputs: int) -> dict[str, Any]:
    """One node of these tests, and one that saves what it gives."""
    return {
        "1": {"class_type": class_type, "inputs": {"seed": 1, **inputs}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "gpu"}},
    }


def completes(function: FunctionProcess, event_id: str, document: dict[str, Any]) -> dict[str, Any]:
    """Run a job that has to succeed; its manifest."""
    answer = function.send_event(event_id, {"workflow": document})
    assert (answer.status, answer.json.get("type")) == (200, JOB_COMPLETED), answer.body
    manifest: dict[str, Any] = answer.json["data"]
    return manifest


def memory_bytes() -> tuple[int, int]:
    """Used and total memory of the GPU."""
    gpu = read_gpus(visible=None).gpus[0]
    return gpu.memory_used_bytes or 0, gpu.memory_total_bytes or 0


def test_a_job_runs_on_the_gpu_and_nvml_is_shown(function: FunctionProcess) -> None:
    """Pixels come out; `/metrics` and `comfyfn doctor` tell of the GPU what NVML does."""
    assert completes(function, "upscale", case("10_upscale_srvgg"))["outputs"][0]["width"] == 128
    assert "cuda" in function.log.read_text().lower()
    metrics = function.get("/metrics").body.decode()
    shown = {
        name: float(value) for name, value in re.findall(r"^comfyfn_gpu_(\w+)\{.*\} (\S+)$", metrics, re.MULTILINE)
    }
    assert shown["memory_total_bytes"] == memory_bytes()[1]
    assert 0 < shown["memory_used_bytes"] <= shown["memory_total_bytes"]
    assert 0 <= shown["utilization_ratio"] <= 1
    assert 0 < shown["temperature_celsius"] < 110
    assert "comfyfn_gpu_lost 0.0" in metrics
    doctor = comfyfn("doctor", cwd=function.root, ENGINE="embedded", DATA_DIR=str(function.root / "doctor"))
    assert "NVIDIA" in doctor.stdout


def test_memory_that_a_node_holds_is_freed_for_the_next_job(function: FunctionProcess) -> None:
    """The first try runs out of memory, ComfyUI is asked to free it, the second one succeeds in the same process."""
    gib = int(memory_bytes()[1] / GIB * 0.6)
    completes(function, "first", workflow("TestHoldMemory", gib=gib))
    engine = function.engine_pid
    completes(function, "second", workflow("TestHoldMemory", gib=gib, seed=2))
    assert "trying once more with freed memory" in function.log.read_text()
    assert function.engine_pid == engine


def test_a_job_larger_than_the_gpu_fails_and_the_next_one_runs(function: FunctionProcess) -> None:
    """Out of memory again after it was freed is final."""
    too_much = int(memory_bytes()[1] / GIB) + 100
    answer = function.send_event("large", {"workflow": workflow("TestHoldMemory", gib=too_much)})
    assert (answer.status, answer.json["data"]["error"]["code"]) == (200, "out_of_memory"), answer.body
    completes(function, "next", case("01_empty_save"))


def test_a_broken_cuda_context_costs_the_engine_its_process(function: FunctionProcess) -> None:
    """The job may be tried again; the next one runs on the GPU in a new process."""
    completes(function, "before", workflow("TestHoldMemory", gib=1))
    engine = function.engine_pid
    answer = function.send_event("break", {"workflow": workflow("TestBreakContext")})
    assert (answer.status, answer.json["code"]) == (503, "engine_unavailable"), answer.body
    wait_until(function.is_ready, what="the new engine", timeout_seconds=120)
    assert function.engine_pid != engine
    completes(function, "after", workflow("TestHoldMemory", gib=1, seed=3))

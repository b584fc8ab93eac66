"""The engine before the first job and between jobs: warm-up, start budget, memory limit, a lost GPU."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.engine import DATA, case
from tests.support.https import CERTIFICATE, HttpsServer, ServedFile
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess


@pytest.fixture
def warm_up_file(tmp_path: Path) -> Path:
    """A workflow that needs an input and a model."""
    path = tmp_path / "warm-up.json"
    path.write_text(json.dumps(case("10_upscale_srvgg")))
    return path


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Storage with the input."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    shutil.copyfile(DATA / "cases" / "in_64x48.png", folder / "in_64x48.png")
    return folder


def detail(function: FunctionProcess) -> str:
    """Why the function is not ready."""
    return str(function.get("/ready").json.get("detail", ""))


def starts(function: FunctionProcess) -> float:
    """How many engines were started."""
    lines = function.get("/metrics").body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("comfyfn_engine_starts_total"))


def test_a_warm_up_has_run_when_the_function_is_ready(
    function_factory: FunctionFactory, warm_up_file: Path, uploads: Path, model_files: Path
) -> None:
    """It brings its models, leaves no output, and counts as no job."""
    function = function_factory(
        WARMUP_PROMPT_FILE=str(warm_up_file), MODELS_URL=model_files.as_uri(), UPLOADS_URL=uploads.as_uri()
    )
    (entry,) = function.engine_history().values()
    assert entry["status"]["status_str"] == "success"
    assert (function.root / "data" / "models" / "upscale_models" / "tiny_srvgg_x2.safetensors").exists()
    assert not list((function.root / "data" / "output").rglob("*.png"))
    assert b"comfyfn_jobs_total{" not in function.get("/metrics").body


def test_a_warm_up_that_fails_keeps_the_function_from_being_ready(
    function_factory: FunctionFactory, warm_up_file: Path, uploads: Path
) -> None:
    """`/ready` and the log say why; `/health` stays 200 and jobs are taken."""
    function = function_factory(probe="/health", WARMUP_PROMPT_FILE=str(warm_up_file), UPLOADS_URL=uploads.as_uri())
    wait_until(lambda: detail(function).startswith("the warm-up failed: "), what="the warm-up's failure")
    assert "for node 2: " in detail(function)
    assert function.log_records(detail(function))
    assert (function.get("/ready").status, function.get("/health").status) == (503, 200)
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200


def test_a_warm_up_by_url_is_fetched_until_it_is_there(function_factory: FunctionFactory) -> None:
    """Away, it keeps the function from being ready and `/ready` says why; the port is open meanwhile."""
    with HttpsServer() as host:
        function = function_factory(
            probe="/health",
            WARMUP_PROMPT_URL=host.url("/warm-up.json?key=s3cr3t", "localhost"),
            ALLOW_PRIVATE_NETWORKS="true",
            SSL_CERT_FILE=str(CERTIFICATE),
        )
        problem = f"WARMUP_PROMPT_URL: {host.url('/warm-up.json', 'localhost')}: there is no such file"
        wait_until(lambda: problem in detail(function), what="the problem")
        assert (function.get("/ready").status, function.get("/health").status) == (503, 200)
        host.files["/warm-up.json"] = ServedFile(json.dumps(case("01_empty_save")).encode())
        wait_until(function.is_ready, what="the warm-up")
    (entry,) = function.engine_history().values()
    assert entry["status"]["status_str"] == "success"
    assert "s3cr3t" not in function.log.read_text()


def test_an_unreadable_warm_up_file_stops_the_start(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """One line names variable and file."""
    with pytest.raises(
        AssertionError, match=r"Error: WARMUP_PROMPT_FILE='.*nowhere\.json': expected a file that can be"
    ):
        function_factory(WARMUP_PROMPT_FILE=str(tmp_path / "nowhere.json"))


def test_an_engine_that_never_starts_makes_the_function_unhealthy(
    function_factory: FunctionFactory, tmp_path: Path
) -> None:
    """After five starts in a row `/health` is 500 and names the reason."""
    function = function_factory(
        probe="/health", ENGINE="comfyui", COMFY_HOME=str(tmp_path), CMD="sh -c 'echo bad; false'"
    )
    wait_until(lambda: function.get("/health").status == 500, what="the end of the start budget")
    assert "ended with status 1: bad" in function.get("/health").json["detail"]
    assert starts(function) >= 5


def test_an_engine_that_never_starts_costs_a_job_none_of_its_attempts(
    function_factory: FunctionFactory, tmp_path: Path
) -> None:
    """However often it is delivered: it is not even claimed once the engine is known to fail."""
    function = function_factory(
        probe="/health", ENGINE="comfyui", COMFY_HOME=str(tmp_path), CMD="false", ALWAYS_RESTART_COMFYUI="true"
    )
    records = function.result_path("job").parent
    answers = [function.send_event("job", {"workflow": case("01_empty_save")})]
    handed_back = sorted(records.glob("attempt-*"))
    answers += [function.send_event("job", {"workflow": case("01_empty_save")}) for _ in range(4)]
    assert {(answer.status, answer.json["code"]) for answer in answers} == {(503, "engine_unavailable")}
    assert not function.result_path("job").exists()
    assert sorted(records.glob("attempt-*")) == handed_back
    assert not [path for path in handed_back if path.suffix == ".failed"]


def test_always_restart_keeps_the_function_healthy(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """With ALWAYS_RESTART_COMFYUI `/health` is 200 after more starts than the budget has."""
    function = function_factory(
        probe="/health",
        ENGINE="comfyui",
        COMFY_HOME=str(tmp_path),
        CMD="false",
        ALWAYS_RESTART_COMFYUI="true",
    )
    wait_until(lambda: starts(function) == 6, what="the sixth start")
    assert (function.get("/health").status, function.get("/ready").status) == (200, 503)


def test_an_engine_over_its_memory_limit_is_replaced_after_a_job(function_factory: FunctionFactory) -> None:
    """The next job runs in the new one."""
    function = function_factory(ENGINE_MEMORY_LIMIT_GB="0.001")
    engine = function.engine_pid
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200
    wait_until(lambda: function.is_ready() and function.engine_pid != engine, what="the new engine")
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200


def test_a_lost_gpu_makes_the_function_not_ready(function_factory: FunctionFactory, fake_nvml: Path) -> None:
    """`/ready` says which, a metric raises the alarm, and `/health` stays 200: no restart would help."""
    function = function_factory(probe="/health", LD_LIBRARY_PATH=str(fake_nvml), FAKE_NVML_LOST="0")
    wait_until(lambda: detail(function) == "GPU 0: GPU is lost: no job can run on this node", what="the loss")
    assert (function.get("/ready").status, function.get("/health").status) == (503, 200)
    assert b"comfyfn_gpu_lost 1.0" in function.get("/metrics").body

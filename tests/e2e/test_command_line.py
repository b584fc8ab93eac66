"""The `comfyfn` command and the demo, as a user runs them."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.support.engine import DATA, EmbeddedEngine, case, prepared
from tests.support.processes import run_to_end

if TYPE_CHECKING:
    from tests.support.function_process import FunctionFactory

ROOT = Path(__file__).parents[2]


def comfyfn(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = (sys.executable, "-m", "function.cli", *arguments)
    return run_to_end(*command, cwd=cwd, timeout_seconds=120, **environ)


def workflow_file(folder: Path, name: str = "10_upscale_srvgg") -> Path:
    """A recorded workflow as a file."""
    path = folder / "workflow.json"
    path.write_text(json.dumps(case(name)))
    return path


def test_run_sends_a_job_and_writes_its_files(
    function_factory: FunctionFactory, model_files: Path, tmp_path: Path
) -> None:
    """Inputs can be set, files can be sent along, outputs arrive in the directory."""
    function = function_factory()
    function.put_model("upscale_models", model_files / "upscale_models" / "tiny_srvgg_x2.safetensors")
    done = comfyfn(
        *("run", str(workflow_file(tmp_path)), "--url", function.url, "-o", "results"),
        *("--set", f"1.image=@{DATA / 'cases' / 'in_64x48.png'}", "--set", "4.filename_prefix=mine/up"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "results/mine/up_00001_.png\n"), done.stderr
    with Image.open(tmp_path / "results" / "mine" / "up_00001_.png") as image:
        assert image.size == (128, 96)


def test_engine_runs_alone(tmp_path: Path, model_files: Path) -> None:
    """`comfyfn engine` is an engine on its own: it takes ComfyUI's flags, runs a workflow and ends with status 0."""
    command = (sys.executable, "-m", "function.cli", "engine")
    engine = EmbeddedEngine(prepared(tmp_path / "base", model_files), arguments=command, flags=["--disable-metadata"])
    engine.start()
    try:
        (item,) = engine.run(case("10_upscale_srvgg")).images("4")
        assert engine.image(item).size == (128, 96)
    finally:
        assert engine.stop() == 0


def test_engine_names_itself_in_what_it_refuses(tmp_path: Path) -> None:
    """A wrong flag is told in two lines, under the name that was called."""
    done = comfyfn("engine", "--no-such-flag", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "usage: comfyfn engine [FLAGS]\ncomfyfn engine: error: unrecognized arguments: --no-such-flag\n"
    )


def test_run_local_starts_a_function_of_its_own(tmp_path: Path) -> None:
    """With nothing running and nothing set, one command gives a picture."""
    path = workflow_file(tmp_path, "01_empty_save")
    done = comfyfn("run", str(path), "--local", "--set", "1.width=40", "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "out/c01_00001_.png\n"), done.stderr
    with Image.open(tmp_path / "out" / "c01_00001_.png") as image:
        assert image.size == (40, 64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--url", "http://127.0.0.1:1"], "no function answers at http://127.0.0.1:1"),
        (["--set", "9.x=1"], "no node '9'"),
        (["--set", "1.color"], "expected NODE.INPUT=VALUE"),
        (["--set", "1.color=@nowhere.png"], "nowhere.png: No such file"),
    ],
)
def test_run_says_in_one_line_what_is_wrong(tmp_path: Path, arguments: list[str], says: str) -> None:
    """And exits with 1, without a stack trace."""
    done = comfyfn("run", str(workflow_file(tmp_path, "01_empty_save")), *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_run_explains_the_editors_format(tmp_path: Path) -> None:
    """The most common mistake gets its way out."""
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps({"nodes": [], "links": []}))
    done = comfyfn("run", str(path), cwd=tmp_path)
    assert (done.returncode, "Export (API)" in done.stderr) == (1, True)


def test_run_reports_a_failed_job(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """With code and message of the manifest."""
    function = function_factory()
    function.put_upload("in_64x48.png")
    done = comfyfn("run", str(workflow_file(tmp_path)), "--url", function.url, cwd=tmp_path)
    assert done.returncode == 1
    assert "Error: model_missing: " in done.stderr


def test_doctor_finds_a_fresh_machine_in_order(tmp_path: Path) -> None:
    """Each subject has its line; the engine was really started."""
    done = comfyfn("doctor", cwd=tmp_path, LD_LIBRARY_PATH="")
    lines = {line[6:22].strip(): line for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stdout
    assert {"settings", "storage models", "storage uploads", "storage results", "MODEL_DIR", "disk", "engine"} <= set(
        lines
    )
    assert "create-if-absent works" in lines["storage results"]
    assert "ready after" in lines["engine"]


def engine_line(tmp_path: Path, port: int) -> str:
    """What doctor says of a ComfyUI that would listen on this port and doesn't start."""
    cmd = f"no-such-program main.py --cpu --port {port}"
    done = comfyfn("doctor", cwd=tmp_path, ENGINE="comfyui", COMFY_HOME=str(tmp_path), CMD=cmd)
    (line,) = [line for line in done.stdout.splitlines() if line[6:22].strip() == "engine"]
    return line


def test_doctor_starts_no_second_engine_beside_that_of_a_function(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """Where CMD's port answers as ComfyUI does, as in a container that is well, that is the engine."""
    line = engine_line(tmp_path, engine.port)
    assert line.startswith("ok")
    assert "already running" in line


class Welcome(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the same page."""

    def do_GET(self) -> None:
        """200, whatever is asked for."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>It works!</h1>")


def test_doctor_takes_nobody_else_for_the_engine(tmp_path: Path) -> None:
    """Another server on that port is in the way."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Welcome) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = engine_line(tmp_path, server.server_port)
        server.shutdown()
    assert line.startswith("fail")
    assert f"port {server.server_port} can't be used" in line


def test_doctor_says_what_to_mend(tmp_path: Path) -> None:
    """A broken command, a store that does not answer, a directory that is a file."""
    (tmp_path / "file").touch()
    done = comfyfn(
        "doctor",
        cwd=tmp_path,
        ENGINE="comfyui",
        COMFY_HOME=str(tmp_path),
        CMD="no-such-program main.py",
        MODELS_URL="s3://bucket/models",
        AWS_ENDPOINT_URL="http://127.0.0.1:1",
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="secret",
        MODEL_DIR=str(tmp_path / "file" / "models"),
    )
    lines = {line[6:22].strip(): line for line in done.stdout.splitlines()}
    assert done.returncode == 1
    assert lines["storage models"].startswith("fail")
    assert "check AWS_ENDPOINT_URL" in lines["storage models"]
    assert "set MODEL_DIR" in lines["MODEL_DIR"]
    assert "no-such-program" in lines["engine"]
    assert "Traceback" not in done.stdout + done.stderr


def test_doctor_names_folders_of_models_that_cant_be_written(tmp_path: Path) -> None:
    """The directory of models can be, but models are downloaded into its folders; a file system's own don't count."""
    models = tmp_path / "models"
    for folder in ("vae", ".snapshot"):
        (models / folder).mkdir(parents=True)
    for folder in ("checkpoints", "lost+found"):
        (models / folder).symlink_to("/proc")  # where nobody makes files, root neither
    done = comfyfn("doctor", cwd=tmp_path, ENGINE="embedded", MODEL_DIR=str(models), LD_LIBRARY_PATH="")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert done.returncode == 1
    assert "can't be downloaded into checkpoints; chown -R" in line


def test_doctor_stops_at_a_setting_that_is_wrong(tmp_path: Path) -> None:
    """With the line of the setting."""
    done = comfyfn("doctor", cwd=tmp_path, PORT="all")
    assert (done.returncode, done.stdout) == (
        1,
        "fail  settings         PORT='all': expected a whole number from 1 to 65535\n",
    )


def test_the_demo_shows_the_main_job(tmp_path: Path) -> None:
    """It ends well only if the redelivery was answered from the stored result; its picture shows both images."""
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same reply, byte for byte: True" in done.stdout
    assert "runs in the engine's own history: 1" in done.stdout
    with Image.open(tmp_path / "demo-out" / "before-after.png") as picture:
        assert picture.width > 1000

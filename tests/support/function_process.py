"""The function as a process: gunicorn and functions-framework on a free port, with an engine of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from events import JOB_REQUESTED
from function.cli.local import free_port
from function.job import derived_job_id
from tests.support.engine import DATA, Answer, comfyui_command
from tests.support.processes import child_pids, runs, wait_until

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from pathlib import Path

    FunctionFactory = Callable[..., "FunctionProcess"]

EVENT_SOURCE = "/tests"
DIRECTORIES = {"model": "models", "input": "input", "output": "output"}


def engine_settings(root: Path) -> dict[str, str]:
    """The embedded engine, or the real ComfyUI that COMFY_HOME names with directories below `root`."""
    if "COMFY_HOME" not in os.environ:
        return {"ENGINE": "embedded"}
    base = root / "comfyui"
    base.mkdir()
    (base / "index.html").write_text("<!doctype html>")
    flags = ["--cpu", "--disable-auto-launch", "--port", str(free_port()), "--base-directory", str(base)]
    return {
        "ENGINE": "comfyui",
        "CMD": shlex.join([*comfyui_command(base), *flags]),
        **{f"{name.upper()}_DIR": str(root / "data" / folder) for name, folder in DIRECTORIES.items()},
    }


class Client:
    """Asks one URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(maxsize=100, retries=False, timeout=120)

    def close(self) -> None:
        """Close its connections."""
        self._http.clear()

    def get(self, path: str) -> Answer:
        """GET a path."""
        return self._request("GET", path)

    def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> Answer:
        """POST JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._request("POST", path, body=data, headers={"Content-Type": "application/json", **(headers or {})})

    def send_event(self, event_id: str, document: object, *, kind: str = JOB_REQUESTED) -> Answer:
        """Send a binary CloudEvent."""
        headers = {"ce-specversion": "1.0", "ce-id": event_id, "ce-source": EVENT_SOURCE, "ce-type": kind}
        return self.post("/", document, headers)

    def _request(self, method: str, path: str, **arguments: Any) -> Answer:
        answer = self._http.request(method, self.url + path, redirect=False, **arguments)
        return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data)


class FunctionProcess(Client):
    """One function process with its storage below `root`."""

    def __init__(self, root: Path, environ: dict[str, str]) -> None:
        self.root = root
        self.store = root / "data" / "store"
        self.port = int(environ.get("PORT", "0")) or free_port()
        super().__init__(f"http://{environ.get('HOST', '127.0.0.1')}:{self.port}")
        self.log = root / "function.log"
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "K_"))},
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "DATA_DIR": str(root / "data"),
            **engine_settings(root),
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, probe: str = "/ready") -> None:
        """Start it and wait until this probe answers 200."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "function.cli", "serve"], env=self._environ, stdout=log, stderr=log
            )
        wait_until(lambda: self.is_ready(probe), what=f"{probe}; log: {self.log}", timeout_seconds=180)

    def stop(self) -> None:
        """End it and whatever it started."""
        self.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The gunicorn master."""
        assert self._process is not None
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        """The gunicorn worker."""
        return child_pids(self.pid)[0]

    @property
    def engine_pid(self) -> int:
        """The engine."""
        return next(pid for pid in child_pids(self.worker_pid) if os.getsid(pid) == pid)  # the transfer process isn't

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout_seconds: float) -> int:
        """Wait for its end; the exit status."""
        assert self._process is not None
        return self._process.wait(timeout_seconds)

    def is_ready(self, probe: str = "/ready") -> bool:
        """Whether this probe answers 200."""
        assert self._process is not None
        assert self._process.poll() is None, f"the function ended: {self.log.read_text()[-2000:]}"
        try:
            return self.get(probe).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def result_path(self, event_id: str) -> Path:
        """Where the manifest of an event's job lies."""
        return self.store / "results" / "jobs" / derived_job_id(EVENT_SOURCE, event_id) / "result.json"

    def put_upload(self, name: str, source: Path = DATA / "cases" / "in_64x48.png") -> None:
        """Put an input file into storage."""
        target = self.store / "uploads" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def put_model(self, folder: str, source: Path) -> None:
        """Put a model file into storage."""
        target = self.store / "models" / folder / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def engine_history(self) -> dict[str, Any]:
        """What the engine itself remembers of its runs."""
        history: dict[str, Any] = self._ask_engine("/history")
        return history

    def engine_runs(self) -> int:
        """How many workflows the engine executes or has been given."""
        queue = self._ask_engine("/queue")
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    def _ask_engine(self, path: str) -> Any:
        port = re.findall(r"engine \d+ answers on port (\d+)", self.log.read_text())[-1]
        return self._http.request("GET", f"http://127.0.0.1:{port}{path}").json()

    def log_records(self, message: str) -> list[dict[str, Any]]:
        """The log lines with this message."""
        records = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [record for record in records if record["message"] == message]


class Background:
    """A call in a thread, with its result or error at `join`."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._result: Answer | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Answer]) -> None:
        try:
            self._result = call()
        except Exception as error:  # noqa: BLE001  (raised again in the test's thread)
            self._error = error

    @property
    def running(self) -> bool:
        """Whether the call has not ended."""
        return self._thread.is_alive()

    def join(self) -> Answer:
        """Wait for the call's answer."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


@contextmanager
def functions(folder: Path) -> Iterator[FunctionFactory]:
    """A way to start functions; at the end they are stopped and have left no process behind."""
    started: list[FunctionProcess] = []

    def start(*, probe: str = "/ready", **environ: str) -> FunctionProcess:
        root = folder / f"function-{len(started)}"
        root.mkdir()
        process = FunctionProcess(root, environ)
        started.append(process)
        process.start(probe)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.stop()
    for process in started:
        wait_until(lambda pid=process.pid: not runs(pid), what="the function's end")


@pytest.fixture
def function_factory(tmp_path: Path) -> Iterator[FunctionFactory]:
    """Functions with settings of one's own."""
    with functions(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[FunctionProcess]:
    """One function for all tests of a module, with the shared input image and upscaler in storage."""
    with functions(tmp_path_factory.mktemp("function")) as start:
        process = start()
        process.put_upload("in_64x48.png")
        process.put_model("upscale_models", model_files / "upscale_models" / "tiny_srvgg_x2.safetensors")
        yield process

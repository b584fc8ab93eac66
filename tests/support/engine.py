"""Engines as processes and a small client of them: the embedded core, or the real ComfyUI that COMFY_HOME names.

`COMFY_PYTHON` is the interpreter that runs ComfyUI's `main.py`, the tests' own one if it is unset.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from PIL import Image
from websockets.sync.client import connect

from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from websockets.sync.client import ClientConnection

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "comfyui"
RECORDED = DATA / "recorded"

Message = dict[str, Any]


def recorded(name: str) -> dict[str, Any]:
    """One file of recorded traffic."""
    return json.loads((RECORDED / f"{name}.json").read_text())


def case(name: str) -> dict[str, Any]:
    """One of the shared workflows."""
    return json.loads((DATA / "cases" / f"{name}.json").read_text())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answered; the names of its headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Directories:
    """Where an engine reads and writes."""

    base: Path

    @property
    def models(self) -> Path:
        """Root of the model folders."""
        return self.base / "models"

    @property
    def input(self) -> Path:
        """Where LoadImage looks."""
        return self.base / "input"

    @property
    def output(self) -> Path:
        """Where SaveImage writes."""
        return self.base / "output"

    @property
    def temp(self) -> Path:
        """Where PreviewImage writes."""
        return self.base / "temp"


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt from POST to its end: the answer, every message its client saw, and the history entry."""

    answer: Answer
    messages: list[Message]
    history: dict[str, Any]

    @property
    def status(self) -> str:
        """`success` or `error`."""
        return self.history["status"]["status_str"]

    @property
    def cached(self) -> list[str]:
        """The nodes whose results were there already."""
        return next(data["nodes"] for kind, data in self.history["status"]["messages"] if kind == "execution_cached")

    @property
    def error(self) -> dict[str, Any]:
        """The data of `execution_error`."""
        return next(data for kind, data in self.history["status"]["messages"] if kind == "execution_error")

    def images(self, node_id: str) -> list[dict[str, str]]:
        """The files that an output node names."""
        return self.history["outputs"][node_id]["images"]


class EmbeddedEngine:
    """One engine process and a client of it.

    Args:
        directories: Where it reads and writes.
        arguments: The command up to the flags that this class adds.
        cwd: Where the command runs.
        flags: More flags.
    """

    def __init__(
        self, directories: Directories, *, arguments: Sequence[str] = (), cwd: Path = ROOT, flags: Sequence[str] = ()
    ) -> None:
        self.directories = directories
        self.port = free_port()
        self.log = directories.base / "engine.log"
        self._cwd = cwd
        self._arguments = [
            *(arguments or (sys.executable, "-W", "error", "-m", "function.engine.embedded")),
            *("--cpu", "--disable-auto-launch", "--port", str(self.port), "--base-directory", str(directories.base)),
            *flags,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it answers."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._arguments, cwd=self._cwd, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        wait_until(self._answers, what=f"the engine answers, see {self.log}", timeout_seconds=300)

    def stop(self) -> int:
        """Ask the process to end and wait for it; its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(10)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/system_stats").status == 200
        except OSError:
            return False

    def get(self, path: str) -> Answer:
        """GET one path."""
        return self.request("GET", path)

    def post(self, path: str, content: object, *, headers: Mapping[str, str] | None = None) -> Answer:
        """POST one path: bytes as they are, anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.request("POST", path, body, headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, quote(path, safe="/?&=%"), body, dict(headers or {}))
            response = connection.getresponse()
            headers_in_lower_case = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers_in_lower_case, response.read())
        finally:
            connection.close()

    @contextmanager
    def socket(self, client_id: str, path: str = "/ws") -> Iterator[ClientConnection]:
        """A WebSocket of this client, its greeting still unread."""
        with connect(f"ws://127.0.0.1:{self.port}{path}?clientId={client_id}", proxy=None) as opened:
            yield opened

    def run(self, prompt: Mapping[str, Any], **more: object) -> Run:
        """Post one prompt as a client of its own and follow it to its end."""
        client_id = uuid.uuid4().hex
        with self.socket(client_id) as opened:
            receive(opened)
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id, **more})
            assert answer.status == 200, answer.body
            messages = messages_until_end(opened)
        prompt_id = answer.json["prompt_id"]
        return Run(answer, messages, self.get(f"/history/{prompt_id}").json[prompt_id])

    def wait_for(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt, once it is there."""
        wait_until(lambda: prompt_id in self.get(f"/history/{prompt_id}").json, what=f"{prompt_id} ends")
        return self.get(f"/history/{prompt_id}").json[prompt_id]

    def image(self, item: Mapping[str, str]) -> Image.Image:
        """A picture that a prompt saved, through `/view`."""
        answer = self.get(f"/view?{urlencode(item)}")
        assert answer.status == 200
        with Image.open(io.BytesIO(answer.body)) as opened:
            opened.load()
            return opened

    def free_memory(self) -> None:
        """Drop the engine's cache, and wait until that is done: the next prompt runs all its nodes."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run({"1": {"class_type": "PreviewAny", "inputs": {"source": uuid.uuid4().hex}}})


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def receive(opened: ClientConnection) -> Message:
    """The next text message of a socket; binary ones (previews) are skipped."""
    while isinstance(message := opened.recv(timeout=60), bytes):
        pass
    return json.loads(message)


def messages_until_end(opened: ClientConnection) -> list[Message]:
    """All messages up to `executing` without a node, ComfyUI's end signal."""
    messages = [receive(opened)]
    while not (messages[-1]["type"] == "executing" and messages[-1]["data"]["node"] is None):
        messages.append(receive(opened))
    return messages


def make_models(directory: Path) -> None:
    """Write the small models of the shared cases."""
    subprocess.run([sys.executable, str(DATA / "gen_models.py"), str(directory)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with the models of the shared cases; copy from it, don't change it."""
    directory = tmp_path_factory.mktemp("models")
    make_models(directory)
    return directory


def prepared(base: Path, model_files: Path) -> Directories:
    """Directories of one engine, with the shared input image and links to the shared models."""
    directories = Directories(base)
    for directory in (directories.input, directories.output):
        directory.mkdir(parents=True)
    (directories.input / "in_64x48.png").write_bytes((DATA / "cases" / "in_64x48.png").read_bytes())
    for source in model_files.rglob("*.safetensors"):
        target = directories.models / source.relative_to(model_files)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    return directories


def comfyui_command(frontend: Path) -> list[str]:
    """How the real ComfyUI starts, with a page that takes the place of its own."""
    return [
        *(os.environ.get("COMFY_PYTHON", sys.executable), "main.py"),
        *("--front-end-root", str(frontend), "--database-url", "sqlite:///:memory:"),
        *("--disable-api-nodes", "--disable-all-custom-nodes"),
    ]


def _real_engine(directories: Directories, home: str, flags: Sequence[str]) -> EmbeddedEngine:
    """A ComfyUI without its frontend package: any folder with an index page will do."""
    frontend = directories.base / "frontend"
    frontend.mkdir()
    (frontend / "index.html").write_text("<!doctype html>")
    return EmbeddedEngine(directories, arguments=comfyui_command(frontend), cwd=Path(home), flags=flags)


def engine_of(directories: Directories, flags: Sequence[str] = ()) -> EmbeddedEngine:
    """The engine that the tests run against, not started yet."""
    home = os.environ.get("COMFY_HOME")
    return _real_engine(directories, home, flags) if home else EmbeddedEngine(directories, flags=flags)


@pytest.fixture
def engine_factory(tmp_path: Path, model_files: Path) -> Iterator[Callable[..., EmbeddedEngine]]:
    """Makes started engines, each with directories and flags of its own; stopped after the test."""
    with ExitStack() as stack:

        def make(*flags: str) -> EmbeddedEngine:
            made = engine_of(prepared(tmp_path / f"engine-{uuid.uuid4().hex[:8]}", model_files), flags)
            stack.callback(made.stop)
            made.start()
            return made

        yield make


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[EmbeddedEngine]:
    """One engine for a whole module."""
    made = engine_of(prepared(tmp_path_factory.mktemp("engine") / "base", model_files))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def engine(shared_engine: EmbeddedEngine) -> EmbeddedEngine:
    """The module's engine with an empty cache."""
    shared_engine.free_memory()
    return shared_engine


embedded_only = pytest.mark.skipif("COMFY_HOME" in os.environ, reason="about the embedded core itself, not ComfyUI")
"""Marks tests of what the embedded core does in its own way."""

RECORDED_VERSION = "0.3.64"


def engine_version() -> str:
    """The ComfyUI that the tests run with; the embedded core speaks as the recorded one."""
    home = os.environ.get("COMFY_HOME")
    text = (Path(home) / "comfyui_version.py").read_text() if home else ""
    found = re.search(r'__version__ = "([^"]+)"', text)
    return found[1] if found else RECORDED_VERSION


def as_recorded(what: str) -> pytest.MarkDecorator:
    """Marks tests that compare word for word with what only the recorded version says.

    Args:
        what: What other versions say otherwise.
    """
    version = engine_version()
    reason = f"recorded with ComfyUI {RECORDED_VERSION}, this is {version}: {what}"
    return pytest.mark.skipif(version != RECORDED_VERSION, reason=reason)


comfyui_only = pytest.mark.skipif("COMFY_HOME" not in os.environ, reason="the embedded core has nothing of the kind")
"""Marks tests of what only the real ComfyUI does."""

"""What the function adds to a workflow, beside a client that talks to the same engine itself.

Both ways run the same graph in the same engine, request by request in turn, each time with a number that makes every
node run again. Timed is from the graph to the decoded bytes of its file:

- straight to the engine: POST /prompt on a kept connection, the socket (kept open too) until `executing` without a
  node, GET /history/<id>, GET /view;
- through the function: POST /prompt on a kept connection, its answer read whole, parsed, the base64 decoded.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import re
import shlex
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import click
from PIL import Image
from websockets.sync.client import connect

from bench.bringing import peak_bytes
from bench.document import write_between
from function.cli.local import free_port, local_function
from tests.support.engine import comfyui_command
from tests.support.processes import child_pids

NAME = "overhead"
CLIENTS = 8
PICTURE = "noise.png"
WARM_RUNS = 10

Graph = dict[str, Any]
MakeGraph = Callable[[int], Graph]


@dataclass(frozen=True)
class Place:
    """A running function and the engine behind it."""

    folder: Path
    function_port: int
    engine_port: int

    @property
    def engine(self) -> str:
        """The engine's name for the table."""
        version = asked(self.engine_port, "/system_stats")["system"]["comfyui_version"]
        return f"ComfyUI {version}" if "COMFY_HOME" in os.environ else "embedded"

    @property
    def worker_pid(self) -> int:
        """The process of the function that answers."""
        found = re.findall(r"Booting worker with pid: (\d+)", (self.folder / "function.log").read_text())
        return int(found[-1])


class Direct:
    """A careful client of ComfyUI: two connections, both kept."""

    def __init__(self, place: Place) -> None:
        self._client_id = uuid.uuid4().hex
        self._http = http.client.HTTPConnection("127.0.0.1", place.engine_port)
        self._socket = connect(
            f"ws://127.0.0.1:{place.engine_port}/ws?clientId={self._client_id}", compression=None, max_size=None, proxy=None, ping_interval=None, close_timeout=0
        )

    def run(self, graph: Graph) -> bytes:
        """Run a graph that saves one file; the file."""
        prompt_id = str(uuid.uuid4())
        self._ask("POST", "/prompt", {"prompt": graph, "prompt_id": prompt_id, "client_id": self._client_id})
        while not is_end(self._socket.recv(), prompt_id):
            pass
        outputs = json.loads(self._ask("GET", f"/history/{prompt_id}"))[prompt_id]["outputs"]
        (file,) = outputs["save"]["images"]
        return self._ask("GET", f"/view?{urlencode(file)}")

    def close(self) -> None:
        """End both connections."""
        self._socket.close()
        self._http.close()

    def _ask(self, method: str, path: str, body: object = None) -> bytes:
        return asked_on(self._http, method, path, body)


class Through:
    """A client of the function: one connection, kept."""

    def __init__(self, place: Place) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", place.function_port)

    def run(self, graph: Graph) -> bytes:
        """Run a graph that saves one file; the file."""
        (image,) = json.loads(asked_on(self._http, "POST", "/prompt", {"prompt": graph}))["images"]
        return base64.b64decode(image)

    def close(self) -> None:
        """End the connection."""
        self._http.close()


WAYS = {"direct": Direct, "function": Through}


def asked_on(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> bytes:
    """One request on a kept connection; anything but 200 ends the benchmark."""
    content = None if body is None else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != http.client.OK:
        raise RuntimeError(f"{method} {path}: HTTP {answer.status}: {data[:500]!r}")
    return data


def asked(port: int, path: str) -> Any:  # noqa: ANN401  (JSON is any value)
    """GET a JSON document on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    document = json.loads(asked_on(connection, "GET", path))
    connection.close()
    return document


def is_end(message: str | bytes, prompt_id: str) -> bool:
    """Whether a message of the socket ends this run."""
    if isinstance(message, bytes) or '"executing"' not in message:
        return False
    data = json.loads(message)["data"]
    return data["node"] is None and data["prompt_id"] == prompt_id


@contextmanager
def running() -> Iterator[Place]:
    """A function with the embedded engine, or with the ComfyUI in COMFY_HOME."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "function.log"
        with local_function(log=log, environ=settings(folder)) as url:
            engine_port = int(re.findall(r"engine \d+ answers on port (\d+)", log.read_text())[-1])
            yield Place(folder, urlsplit(url).port or 0, engine_port)


def settings(folder: Path) -> dict[str, str]:
    """What the function is started with."""
    data = folder / "data"
    common = {"DATA_DIR": str(data), "OMP_NUM_THREADS": "1"}
    if "COMFY_HOME" not in os.environ:
        return {"ENGINE": "embedded", **common}
    base = folder / "comfyui"
    base.mkdir()
    (base / "index.html").write_text("<!doctype html>")
    flags = ["--cpu", "--disable-auto-launch", "--port", str(free_port()), "--base-directory", str(base)]
    return {
        "ENGINE": "comfyui",
        "CMD": shlex.join([*comfyui_command(base), *flags]),
        "INPUT_DIR": str(data / "input"),
        "OUTPUT_DIR": str(data / "output"),
        **common,
    }

"""The embedded core as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.engine import ROOT, EmbeddedEngine, Run, embedded_only, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.sync.client import ClientConnection

pytestmark = embedded_only

BLUR = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 4000, "height": 4000, "batch_size": 1, "color": 5}},
    "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 5.0}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}
"""One node that computes for many seconds."""


def core(*flags: str) -> subprocess.CompletedProcess[str]:
    """A core that ends by itself."""
    command = [sys.executable, "-m", "function.engine.embedded", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def small(prefix: str) -> dict[str, Any]:
    """A workflow that saves one small image."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 5}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def drain(opened: ClientConnection) -> None:
    """Read messages until the socket closes.

    Raises:
        ConnectionClosed: It did.
    """
    while True:
        opened.recv(timeout=5)


def test_port_in_use(engine: EmbeddedEngine) -> None:
    """A port that is taken ends the start at once: status 1, one line that names it, and the first core answers on."""
    ended = core("--port", str(engine.port), "--base-directory", str(engine.directories.base))
    assert ended.returncode == 1
    assert ended.stderr == f"cannot listen on 127.0.0.1 port {engine.port}: Address already in use\n"
    assert engine.get("/prompt").status == 200


def test_unknown_flag() -> None:
    """An unknown flag ends the start with status 2."""
    assert core("--no-such-flag").returncode == 2


def test_bad_file_of_model_paths() -> None:
    """A missing file of model paths ends the start with status 2 and its name."""
    ended = core("--extra-model-paths-config", "no-such-file.yaml")
    assert ended.returncode == 2
    assert "no-such-file.yaml" in ended.stderr


def test_temp_is_wiped(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """The temp directory is empty after a start and gone after the end."""
    engine = engine_factory()
    engine.run({"1": small("x")["1"], "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    assert list(engine.directories.temp.iterdir())
    assert engine.stop() == 0
    assert not engine.directories.temp.exists()
    engine.directories.temp.mkdir()
    (engine.directories.temp / "left.png").touch()
    engine.start()
    assert not engine.directories.temp.exists()


def test_end_while_a_node_runs(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """SIGTERM ends the process at once, in the middle of a node; the socket just closes."""
    engine = engine_factory()
    client_id = uuid.uuid4().hex
    with engine.socket(client_id) as opened:
        engine.post("/prompt", {"prompt": BLUR, "client_id": client_id})
        while (message := receive(opened))["type"] != "executing" or message["data"]["node"] != "2":
            pass
        asked = time.monotonic()
        assert engine.stop() == 0
        assert time.monotonic() - asked < 1
        with pytest.raises(ConnectionClosed):
            drain(opened)


def test_without_metadata(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """With --disable-metadata saved images carry no prompt."""
    engine = engine_factory("--disable-metadata")
    assert "prompt" not in engine.image(engine.run(small("plain")).images("2")[0]).info


def test_without_cache(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """With --cache-none the same prompt runs all its nodes again."""
    engine = engine_factory("--cache-none")
    runs: list[Run] = [engine.run(small("again")) for _ in range(2)]
    assert [run.cached for run in runs] == [[], []]
    assert [run.images("2")[0]["filename"] for run in runs] == ["again_00001_.png", "again_00002_.png"]


def test_limit_of_bodies(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """A body above --max-upload-size is refused with 413, on every route."""
    engine = engine_factory("--max-upload-size", "0.001")
    assert engine.post("/prompt", b" " * 2000).status == 413
    assert engine.get("/features").json["max_upload_size"] == 1048


def test_nothing_on_standard_error(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """Runs, sockets and the end leave no warning and no traceback in the log, with warnings as errors."""
    engine = engine_factory()
    engine.run(small("quiet"))
    engine.post("/prompt", b"{")
    engine.stop()
    assert engine.log.read_text() == ""

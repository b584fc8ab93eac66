"""A real ComfyUI whose directory can't be written, as in the image: mounted read-only in a namespace of its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from function.cli.local import free_port
from tests.support.engine import comfyui_only
from tests.support.processes import run_to_end

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = [pytest.mark.comfyui, comfyui_only]

READ_ONLY = 'mount -o bind,ro "$COMFY_HOME" "$COMFY_HOME" && exec "$@"'
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh")


def on_read_only_home(*command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end where COMFY_HOME is read-only."""
    return run_to_end("/usr/bin/env", *NAMESPACE, *command, cwd=cwd, **environ)


def test_a_cmd_that_names_no_directory_starts_comfyui(tmp_path: Path) -> None:
    """ComfyUI gets ready and has its users' files and its database in DATA_DIR; its own directory stays as it was."""
    if on_read_only_home("true", cwd=tmp_path).returncode != 0:
        pytest.skip("needs a namespace of mounts: run it as root, or allow user namespaces")
    (tmp_path / "index.html").write_text("<!doctype html>")
    python, data = os.environ.get("COMFY_PYTHON", sys.executable), tmp_path / "data"
    done = on_read_only_home(
        *(sys.executable, "-m", "function.cli", "doctor"),
        cwd=tmp_path,
        CMD=f"{python} main.py --cpu --listen 127.0.0.1 --port {free_port()} --front-end-root {tmp_path}",
        **{name: str(data / name.lower()) for name in ("MODEL_DIR", "INPUT_DIR", "OUTPUT_DIR")},
        DATA_DIR=str(data),
    )
    assert "ready after" in done.stdout, done.stdout + done.stderr
    assert (data / "user").is_dir()
    assert (data / "comfyui.db").is_file()

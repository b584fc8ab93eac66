"""A function of one's own on this machine, for as long as a command runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.cli.client import FunctionClient
from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_STOP_SECONDS = 20


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def local_function(
    *, log: Path, environ: Mapping[str, str] | None = None, timeout_seconds: float = 180
) -> Iterator[str]:
    """Start `comfyfn serve` on a free port of loopback, yield its URL once it is ready, stop it at the end.

    Args:
        log: File that takes everything the function prints.
        environ: Settings on top of this process's environment.
        timeout_seconds: How long it may take to become ready.

    Raises:
        EngineUnavailableError: It ended or did not become ready in time.
    """
    port = free_port()
    own = {"HOST": "127.0.0.1", "PORT": str(port), "API_TOKENS": ""}  # nobody but its own client asks it
    variables = {**os.environ, **own, **(environ or {})}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "function.cli", "serve"], env=variables, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process, time.monotonic() + timeout_seconds, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], deadline: float, log: Path) -> None:
    client = FunctionClient(url)
    try:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise EngineUnavailableError(f"the function did not start; its output is in {log}")
            time.sleep(0.05)
    finally:
        client.close()

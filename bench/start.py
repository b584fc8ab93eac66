"""How long the function takes to open its port and to be ready, beside its engine alone.

Runs are interleaved, so that a machine that becomes slower slows both; the medians are what to quote.
"""

from __future__ import annotations

import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from function.cli.local import free_port
from function.config import read_settings
from function.engine.command import engine_command

RUNS = 9
POLL_SECONDS = 0.005
TIMEOUT_SECONDS = 120

Probe = tuple[str, Callable[[int], bool]]


def connects(port: int) -> bool:
    """Whether somebody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def answers(path: str) -> Callable[[int], bool]:
    """A probe: does the path answer 200."""

    def probe(port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    return probe


def measure(argv: list[str], environ: dict[str, str], port: int, probes: list[Probe]) -> dict[str, float]:
    """Start a process and note when each probe, one after the other, first succeeds; seconds from the start."""
    started = time.monotonic()
    process = subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    times = {}
    try:
        for name, probe in probes:
            while not probe(port):
                if process.poll() is not None or time.monotonic() - started > TIMEOUT_SECONDS:
                    sys.exit(f"{argv} did not start")
                time.sleep(POLL_SECONDS)
            times[name] = time.monotonic() - started
    finally:
        process.terminate()
        process.wait()
    return times


def measure_engine(environ: dict[str, str]) -> dict[str, float]:
    """The engine alone, as the function would start it."""
    command = engine_command(read_settings(environ))
    command.prepare()
    port = command.port or free_port()
    return measure(command.argv_for(port), environ, port, [("engine alone", answers("/system_stats"))])


def measure_function(environ: dict[str, str]) -> dict[str, float]:
    """The function: its port, its liveness, its readiness."""
    port = free_port()
    argv = [sys.executable, "-m", "function.cli", "serve"]
    probes = [("port open", connects), ("/health", answers("/health")), ("/ready", answers("/ready"))]
    return measure(argv, {**environ, "PORT": str(port)}, port, probes)


def main() -> None:
    """Print the table."""
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "HOST": "127.0.0.1", "DATA_DIR": str(Path(folder) / "data")}
        with click.progressbar(range(RUNS + 1), label="starting", file=sys.stderr) as runs:
            for run in runs:
                times = {**measure_engine(environ), **measure_function(environ)}
                for name, seconds in times.items() if run else ():  # the first run warms the page cache
                    rows.setdefault(name, []).append(seconds)
    rows["/ready after engine alone"] = [
        ready - alone for ready, alone in zip(rows["/ready"], rows["engine alone"], strict=True)
    ]
    click.echo(f"seconds from the start of the process, {RUNS} interleaved runs")
    click.echo(f"{'':28}{'median':>8}{'min':>8}{'max':>8}")
    for name, values in rows.items():
        click.echo(f"{name:28}{statistics.median(values):8.3f}{min(values):8.3f}{max(values):8.3f}")


if __name__ == "__main__":
    main()

"""How fast the embedded engine runs workflows, beside the ComfyUI that COMFY_HOME names, if it names one.

The engines take turns, so that a machine that becomes slower slows both; medians are what to quote. A run counts from
before its POST until the socket says that it has ended and is in the history.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from websockets.sync.client import connect

from bench.document import write_table
from tests.support.engine import EmbeddedEngine, case, engine_of, make_models, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.sync.client import ClientConnection

    Workflow = dict[str, dict[str, Any]]
    Times = dict[str, dict[str, list[float]]]

EMBEDDED, COMFYUI = "embedded", "ComfyUI"
CASES = {
    "01_empty_save": "64x64 colour, saved",
    "02_load_scale_save": "load, scale, save",
    "03_blur_invert_blend": "blur, invert, blend",
    "06_preview_and_save": "preview and save",
    "10_upscale_srvgg": "upscale, SRVGG",
    "11_upscale_esrgan": "upscale, ESRGAN",
    "12_vae_roundtrip": "encode and decode, TAESD",
}
TRIVIAL = "01_empty_save"
LATENCY, RATE = "POST to end", "runs per second"
NEW = itertools.count()
"""Makes inputs that no run had before."""


class Client:
    """One client with one socket and one connection, as a program that runs many workflows has them."""

    def __init__(self, engine: EmbeddedEngine, socket: ClientConnection, client_id: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", engine.port, timeout=600)
        self._socket = socket
        self._client_id = client_id

    def run(self, workflow: Workflow) -> float:
        """Seconds from the POST to the end signal."""
        body = json.dumps({"prompt": workflow, "client_id": self._client_id})
        started = time.perf_counter()
        self._connection.request("POST", "/prompt", body, {"Content-Type": "application/json"})
        prompt_id = json.loads(self._connection.getresponse().read())["prompt_id"]
        while not self._ended(prompt_id):
            pass
        return time.perf_counter() - started

    def _ended(self, prompt_id: str) -> bool:
        message = json.loads(self._socket.recv(timeout=600))
        if message["type"] == "execution_error":
            sys.exit(f"a run failed: {message['data']['exception_message']}")
        return message["type"] == "executing" and message["data"] == {"node": None, "prompt_id": prompt_id}

    def close(self) -> None:
        """Close the connection; the socket is the caller's."""
        self._connection.close()


@contextmanager
def client_of(engine: EmbeddedEngine) -> Iterator[Client]:
    """A client of an engine that has been started."""
    client_id = uuid.uuid4().hex
    with connect(f"ws://127.0.0.1:{engine.port}/ws?clientId={client_id}", proxy=None) as socket:
        client = Client(engine, socket, client_id)
        try:
            yield client
        finally:
            client.close()


def renewed(name: str) -> Workflow:
    """A case whose nodes all have to run: an input that a node doesn't declare is part of its cache key."""
    workflow: Workflow = case(name)
    for node in workflow.values():
        node["inputs"]["bench"] = next(NEW)
    return workflow


def measure_cases(clients: dict[str, Client], rounds: int) -> Times:
    """Seconds of fresh and of cached runs, by case and by column."""
    times: Times = {}
    for _ in range(rounds):
        for name, title in CASES.items():
            for engine, client in clients.items():
                workflow, row = renewed(name), times.setdefault(title, {})
                row.setdefault(f"{engine} fresh", []).append(client.run(workflow))
                row.setdefault(f"{engine} cached", []).append(client.run(workflow))
    return times


def measure_trivial(clients: dict[str, Client], rounds: int, runs: int) -> Times:
    """Latencies of the smallest workflow, and how many fit into a second one after the other."""
    times: Times = {LATENCY: {}, RATE: {}}
    for _ in range(rounds):
        for engine, client in clients.items():
            workflows = [renewed(TRIVIAL) for _ in range(runs)]
            started = time.perf_counter()
            times[LATENCY].setdefault(engine, []).extend(client.run(workflow) for workflow in workflows)
            times[RATE].setdefault(engine, []).append(runs / (time.perf_counter() - started))
    return times


def table(cases: Times, trivial: Times) -> str:
    """Everything, as Markdown; milliseconds."""
    columns = list(next(iter(cases.values())))
    lines = [f"| median ms per run | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title, row in cases.items():
        lines.append(f"| {title} | {' | '.join(f'{statistics.median(row[each]) * 1e3:.2f}' for each in columns)} |")
    lines += [
        "",
        "| 64x64 colour, saved, one after the other | median ms | p95 ms | runs per second |",
        "|---|---|---|---|",
    ]
    for engine, seconds in trivial[LATENCY].items():
        p95 = statistics.quantiles(seconds, n=20)[-1]
        rate = statistics.median(trivial[RATE][engine])
        lines.append(f"| {engine} | {statistics.median(seconds) * 1e3:.2f} | {p95 * 1e3:.2f} | {rate:.0f} |")
    return "\n".join(lines) + "\n"


def started_engines(stack: ExitStack, folder: Path) -> dict[str, EmbeddedEngine]:
    """The embedded engine, and ComfyUI where COMFY_HOME names one; stopped with the stack."""
    make_models(folder / "models")
    engines = {EMBEDDED: EmbeddedEngine(prepared(folder / "embedded", folder / "models"))}
    if "COMFY_HOME" in os.environ:
        engines[COMFYUI] = engine_of(prepared(folder / "comfyui", folder / "models"))
    for engine in engines.values():
        stack.callback(engine.stop)
        engine.start()
    return engines


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Fresh and cached runs of each case.")
@click.option("--runs", default=40, show_default=True, help="Runs of the smallest workflow in each round.")
@click.option("--write", is_flag=True, help="Put the tables into docs/performance.md.")
def main(*, rounds: int, runs: int, write: bool) -> None:
    """Measure, and print the tables."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = started_engines(stack, folder)
        clients = {name: stack.enter_context(client_of(engine)) for name, engine in engines.items()}
        click.echo(f"measuring {', '.join(clients)}", err=True)
        measure_cases(clients, 1)  # imports and file systems warm up
        text = table(measure_cases(clients, rounds), measure_trivial(clients, rounds // 3, runs))
    click.echo(text)
    if write:
        write_table("bench-engine", text)


if __name__ == "__main__":
    main()

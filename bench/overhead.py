"""What the function adds to a workflow, beside a careful client that talks to the same engine itself.

All ways run the same graph in the same engine, request by request in turn, each time with another number or file so
that every node runs again and nothing comes from a cache. Timed is from the graph to the bytes of its file:

- straight to the engine: POST /prompt on a kept connection, the socket (kept open too) until `executing` without a
  node, GET /history/<id>, GET /view;
- through the function: POST /prompt on a kept connection, its answer read whole, parsed, the base64 decoded;
- the same with `Accept: image/png`, where the answer is the file.
"""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import json
import os
import random
import re
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode, urlsplit

import click
from PIL import Image
from websockets.sync.client import connect

from bench.bringing import cpu_seconds_of, peak_bytes
from bench.document import DOCUMENT, write_table
from function.cli.local import local_function
from tests.support.function_process import engine_settings

CLIENTS = 8
WARM_RUNS = 5
RUNS_PER_CLIENT = 20
KEPT_SECONDS = 1.0
"""The embedded engine ends a connection that was idle for 5 s."""
NOISE = "noise.png"

Graph = dict[str, Any]
Make = Callable[[int, str], Graph]


@dataclass(frozen=True)
class Place:
    """A running function and the engine behind it.

    Attributes:
        folder: Where both keep their files.
        function_port: Where the function listens.
        engine_port: Where its engine listens.
    """

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
    """A careful client of ComfyUI: two connections, both kept.

    Attributes:
        decoding_seconds: Of the last run: from the last byte to the file.
    """

    decoding_seconds = 0.0

    def __init__(self, place: Place) -> None:
        self._client_id = uuid.uuid4().hex
        self._http = http.client.HTTPConnection("127.0.0.1", place.engine_port)
        self._asked_at = 0.0
        self._closing = ExitStack()
        self._socket = self._closing.enter_context(
            connect(
                f"ws://127.0.0.1:{place.engine_port}/ws?clientId={self._client_id}",
                compression=None,
                max_size=None,
                proxy=None,
                ping_interval=None,
                close_timeout=0,
            )
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
        self._closing.close()
        self._http.close()

    def _ask(self, method: str, path: str, body: object = None) -> bytes:
        if time.monotonic() - self._asked_at > KEPT_SECONDS:
            self._http.close()  # it connects by itself
        answer = asked_on(self._http, method, path, body)
        self._asked_at = time.monotonic()
        return answer


class Through:
    """A client of the function: one connection, kept.

    Attributes:
        decoding_seconds: As of `Direct`: JSON and base64.
    """

    def __init__(self, place: Place) -> None:
        self.decoding_seconds = 0.0
        self._http = http.client.HTTPConnection("127.0.0.1", place.function_port)

    def run(self, graph: Graph) -> bytes:
        """Run a graph that saves one file; the file."""
        answer = self._ask(graph)
        read_at = time.perf_counter()
        (image,) = json.loads(answer)["images"]
        file = base64.b64decode(image)
        self.decoding_seconds = time.perf_counter() - read_at
        return file

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def _ask(self, graph: Graph, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
        return asked_on(self._http, "POST", "/prompt", {"prompt": graph}, headers)


class File(Through):
    """A client of the function that asks for the file alone."""

    def run(self, graph: Graph) -> bytes:
        """Run a graph that saves one file; the file."""
        return self._ask(graph, {"Accept": "image/png"})


WAYS = {"direct": Direct, "function": Through, "file": File}


def asked_on(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """One request on a kept connection; anything but 200 ends the benchmark."""
    content = None if body is None else json.dumps(body).encode()
    connection.request(method, path, content, {**headers, **({"Content-Type": "application/json"} if content else {})})
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
    return {"DATA_DIR": str(folder / "data"), "OMP_NUM_THREADS": "1", **engine_settings(folder)}


def flat(number: int, way: str) -> Graph:
    """A picture of 64x64 in one colour."""
    picture = {"width": 64, "height": 64, "batch_size": 1, "color": number}
    return graph(number, way, "EmptyImage", picture)


def noise(number: int, way: str) -> Graph:
    """The picture that `prepare_noise` left for both: the engine's own copy, or the one in storage."""
    return graph(number, way, "LoadImage", {"image": f"{number}.png" if way == "direct" else NOISE})


def graph(number: int, way: str, class_type: str, inputs: dict[str, Any]) -> Graph:
    """A picture that is saved, each in a folder of its own: SaveImage lists the folder that it saves to.

    The engine's cache knows the same picture of another way apart by an input that no node declares.
    """
    prefix = f"direct-{number}/picture" if way == "direct" else "picture"
    return {
        "picture": {"class_type": class_type, "inputs": inputs | {"way": way}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": prefix}},
    }


def prepare_noise(place: Place, width: int, height: int, numbers: range) -> None:
    """A picture that can't be compressed, in storage and, under as many names as needed, where the engine looks.

    The function has to bring it from storage; the direct client's lies there already.
    """
    stored = place.folder / "data" / "store" / "uploads" / NOISE
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.unlink(missing_ok=True)
    Image.frombytes("RGB", (width, height), os.urandom(3 * width * height)).save(stored, compress_level=1)
    for number in numbers:
        own = place.folder / "data" / "input" / f"{number}.png"
        own.unlink(missing_ok=True)
        os.link(stored, own)


@dataclass(frozen=True)
class Times:
    """What runs took, in rounds of one each way.

    Attributes:
        seconds: Of each run, by way.
        decoding_seconds: Of `function`, what the client does with the answer: JSON and base64.
        size_bytes: Of a file.
        cpu_seconds: Of the function's process, for one run through it: what a loaded machine changes least.
    """

    seconds: dict[str, list[float]]
    decoding_seconds: list[float]
    size_bytes: int
    cpu_seconds: float

    def row(self, engine: str, name: str) -> str:
        """The table's line."""
        cells = [engine, f"{name}, {self.size_bytes / 1e6:.3g} MB"]
        cells.append(to_cell(self._median("direct"), self._late("direct")))
        for way in ("function", "file"):
            added = self._median(way) - self._median("direct"), self._late(way) - self._late("direct")
            cells += [to_cell(self._median(way), self._late(way)), to_cell(*added)]
        decoding = 1e3 * statistics.median(self.decoding_seconds)
        cells += [f"{decoding:.1f}", f"{1e3 * self.cpu_seconds:.1f}", str(len(self.seconds["direct"]))]
        return f"| {' | '.join(cells)} |\n"

    def _median(self, way: str) -> float:
        return 1e3 * statistics.median(self.seconds[way])

    def _late(self, way: str) -> float:
        return 1e3 * statistics.quantiles(self.seconds[way], n=20)[-1]


def to_cell(median: float, late: float) -> str:
    """Two figures in ms."""
    return f"{median:.1f} ({late:.1f})"


def in_turn(place: Place, make: Make, numbers: range) -> Times:
    """Run one request after the other, each number every way; which way goes first is drawn."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    decoding: list[float] = []
    with ExitStack() as closing_all:
        clients = {way: closing_all.enter_context(closing(client(place))) for way, client in WAYS.items()}
        cpu = cpu_seconds_of(place.worker_pid)
        for number in numbers:
            files = {}
            for way in random.sample(list(WAYS), len(WAYS)):
                wanted = make(number, way)
                started = time.perf_counter()
                files[way] = clients[way].run(wanted)
                seconds[way].append(time.perf_counter() - started)
            decoding.append(clients["function"].decoding_seconds)
            check_same(files.values())
        cpu = cpu_seconds_of(place.worker_pid) - cpu
    warm = {way: values[WARM_RUNS:] or values for way, values in seconds.items()}
    return Times(warm, decoding, len(files["function"]), cpu / (len(WAYS) - 1) / len(numbers))


def check_same(files: Iterable[bytes]) -> None:
    """All ways gave the same picture: pixels, because the file names the graph that made it."""
    if len({Image.open(io.BytesIO(data)).tobytes() for data in files}) != 1:
        raise RuntimeError("the ways gave different pictures")


def side_by_side(place: Place, way: str, number: int) -> float:
    """Runs per second of `CLIENTS` clients at once."""
    clients = [WAYS[way](place) for _ in range(CLIENTS)]

    def work(index: int) -> None:
        first = number + index * RUNS_PER_CLIENT
        for own in range(first, first + RUNS_PER_CLIENT):
            clients[index].run(flat(own, way))

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))
    rate = CLIENTS * RUNS_PER_CLIENT / (time.perf_counter() - started)
    for client in clients:
        client.close()
    return rate


def rates(place: Place, rounds: int) -> dict[str, list[float]]:
    """Runs per second by way, in rounds."""
    found: dict[str, list[float]] = {way: [] for way in ("direct", "function")}
    numbers = itertools.count(1_000_000, CLIENTS * RUNS_PER_CLIENT)
    for _ in range(rounds):
        for way in random.sample(list(found), len(found)):
            found[way].append(side_by_side(place, way, next(numbers)))
    return found


def grown_bytes(place: Place, number: int) -> int:
    """How far the function's peak of memory grows beyond what it held, while it answers with the large picture."""
    process = Path(f"/proc/{place.worker_pid}")
    (process / "clear_refs").write_text("5")  # the peak starts anew from what is held
    held = peak_bytes(place.worker_pid)
    client = Through(place)
    client.run(noise(number, "function"))
    client.close()
    return peak_bytes(place.worker_pid) - held


def table(place: Place, runs: int) -> str:
    """Measure everything; Markdown."""
    engine = place.engine
    lines = [
        "| engine | picture | direct, ms (p95) | JSON | added | file | added | decoding | CPU | runs |\n",
        f"{'|---' * 10}|\n",
        in_turn(place, flat, range(runs + WARM_RUNS)).row(engine, "64x64"),
    ]
    found = rates(place, rounds=5)
    middle, large = range(runs // 5 + WARM_RUNS), range(4)
    prepare_noise(place, 990, 943, middle)
    lines.append(in_turn(place, noise, middle).row(engine, "noise"))
    prepare_noise(place, 4096, 4096, large)
    times = in_turn(place, noise, large)
    lines.append(times.row(engine, "noise"))
    ratio = statistics.median(ours / direct for ours, direct in zip(found["function"], found["direct"], strict=True))
    medians = {way: statistics.median(values) for way, values in found.items()}
    grown = max(grown_bytes(place, number) for number in large[:2])
    return "".join(lines) + (
        f"\n{CLIENTS} clients at once, 64x64: direct {medians['direct']:.0f} runs/s, through the function "
        f"{medians['function']:.0f} runs/s; ratio within a round {ratio:.2f} (median of 5). The answer with "
        f"{times.size_bytes / 1e6:.1f} MB raises the function's peak of memory by {grown / times.size_bytes:.2f} of "
        "that.\n"
    )


@click.command()
@click.option("--runs", default=200, show_default=True, help="Runs of the small picture, each way.")
@click.option("--write", is_flag=True, help=f"Put the table into {DOCUMENT}.")
def main(*, runs: int, write: bool) -> None:
    """Measure, and print the table."""
    with running() as place:
        text = table(place, runs)
    click.echo(text)
    if write:
        write_table("bench-overhead comfyui" if "COMFY_HOME" in os.environ else "bench-overhead", text)


if __name__ == "__main__":
    main()

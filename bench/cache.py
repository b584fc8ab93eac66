"""How fast one object comes to disk and to tmpfs, and what it costs, beside curl, boto3 and the bare minimum.

Runs are interleaved in rounds, so that a machine that becomes slower slows all; ratios are taken within a round, and
medians over the rounds are what to quote. GB = 1e9 bytes.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.bringing import MIB, WAYS
from bench.document import DOCUMENT, write_part
from bench.plot import draw
from bench.servers import Source, nginx, seaweedfs

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURE = Path("docs/bringing-models.png")
SLOW = ("curl", "per connection")  # one stream of 80 MB/s: the first round says it all
OURS, BOTO3, FLOOR = "comfyfn", "boto3 download_file", "http.client floor"


@dataclass(frozen=True)
class Run:
    """One transfer that was measured."""

    round: int
    source: str
    target: str
    way: str
    gb_per_second: float
    cpu_seconds_per_gb: float
    memory_bytes: int


def measure(number: int, source: Source, target: str, directory: Path, way: str) -> Run:
    """Run one way in a process of its own; the file is removed."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        task = replace(source.task, path=f"{folder}/model.part")
        request = json.dumps({"way": way, "task": asdict(task)})
        command = [sys.executable, "-m", "bench.bringing", request]
        done = subprocess.run(command, env=os.environ | source.environ, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    gigabytes = task.size_bytes / 1e9
    rates = gigabytes / result["seconds"], result["cpu_seconds"] / gigabytes
    return Run(number, source.name, target, way, *rates, result["memory_bytes"])


def plan(sources: list[Source], targets: dict[str, Path], rounds: int) -> Iterator[tuple[int, Source, str, str]]:
    """Every run, in the order in which it happens."""
    for number in range(rounds):
        places = [(source, target) for source in sources for target in targets]
        for source, target in random.sample(places, len(places)):
            for way in random.sample(list(WAYS), len(WAYS)):
                if number == 0 or not (way == SLOW[0] and SLOW[1] in source.name):
                    yield number, source, target, way


def write_content(path: Path, size_bytes: int) -> None:
    """Random bytes, as weights are: nothing on the way can make them smaller."""
    block = os.urandom(64 * MIB)
    with path.open("wb") as file:
        while (left := size_bytes - file.tell()) > 0:
            file.write(block[:left])


def ratio(runs: list[Run], way: str, beside: str, value: str) -> float:
    """Median over the rounds of one way's value by another's."""
    ours, theirs = ({run.round: getattr(run, value) for run in runs if run.way == name} for name in (way, beside))
    return statistics.median(ours[number] / theirs[number] for number in ours.keys() & theirs.keys())


def rows_of(runs: list[Run]) -> Iterator[str]:
    """The table's lines for one source and target."""
    for way in WAYS:
        own = [run for run in runs if run.way == way]
        rates, costs = [run.gb_per_second for run in own], [run.cpu_seconds_per_gb for run in own]
        wall = 1 / ratio(runs, way, BOTO3, "gb_per_second")
        cpu = ratio(runs, way, FLOOR, "cpu_seconds_per_gb")
        yield (
            f"| {own[0].source} | {own[0].target} | {way} | {statistics.median(rates):.2f} ({max(rates):.2f}) "
            f"| {wall:.2f} | {statistics.median(costs):.2f} ({min(costs):.2f}) | {cpu:.2f} "
            f"| {max(run.memory_bytes for run in own) / 1e6:.0f} | {len(own)} |\n"
        )


def table(runs: list[Run]) -> str:
    """Everything, as Markdown."""
    places = dict.fromkeys((run.source, run.target) for run in runs)
    lines = [
        "| from | to | with | GB/s (best) | wall / boto3's | CPU-s/GB (best) | CPU / floor's | memory MB | runs |\n",
        "|---|---|---|---|---|---|---|---|---|\n",
    ]
    for place in sorted(places):
        lines += rows_of([run for run in runs if (run.source, run.target) == place])
    return "".join(lines)


@click.command()
@click.option("--size-mib", default=2048, show_default=True, help="Length of the object.")
@click.option("--rounds", default=5, show_default=True, help="Runs of each way.")
@click.option("--disk", default=tempfile.gettempdir(), show_default=True, help="A directory on a disk.")
@click.option("--tmpfs", default="/dev/shm", show_default=True, help="A directory in memory.")  # noqa: S108  (a mount point)
@click.option("--write", is_flag=True, help=f"Put table and plot into {DOCUMENT.parent}/.")
def main(*, size_mib: int, rounds: int, disk: str, tmpfs: str, write: bool) -> None:
    """Measure, and print the table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=disk)))
        click.echo(f"storing an object of {size_mib} MiB", err=True)
        write_content(folder / "content", size_mib * MIB)
        sources: list[Source] = []
        for server in (nginx, seaweedfs):
            (folder / server.__name__).mkdir()
            sources += stack.enter_context(server(folder / server.__name__, folder / "content"))
        targets = {"disk": Path(disk), "tmpfs": Path(tmpfs)}
        with click.progressbar(list(plan(sources, targets, rounds)), label="bringing it", file=sys.stderr) as planned:
            runs = [measure(n, source, target, targets[target], way) for n, source, target, way in planned]
    text = table(runs)
    click.echo(text)
    if write:
        write_part("bench-cache", text)
        draw(PICTURE, {way: [run for run in runs if run.way == way] for way in WAYS})


if __name__ == "__main__":
    main()

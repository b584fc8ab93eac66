"""Ways to bring one object to a file; run as a program, one way and one object: `python -m bench.bringing JSON`.

Prints one JSON object: wall and CPU seconds of the transfer alone (clients are made and warmed up before) and the
memory of the process that transfers.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1024 * 1024
FLOOR_CONNECTIONS = 4
MANY_CONNECTIONS = 16
FLOOR_RANGE_BYTES = 32 * MIB

Transfer = Callable[[], None]
Measure = Callable[[], float]


@dataclass(frozen=True)
class Task:
    """One transfer.

    Attributes:
        bucket: Where the object lies.
        key: Its key.
        etag: Its ETag.
        size_bytes: Its length.
        url: A URL that anybody may read it at.
        path: The file to write.
        connections: What the floor uses: it tries nothing, it is told what is best.
    """

    bucket: str
    key: str
    etag: str
    size_bytes: int
    url: str
    path: str
    connections: int = FLOOR_CONNECTIONS


@dataclass(frozen=True)
class Way:
    """A transfer that is ready to run.

    Attributes:
        transfer: Runs it.
        cpu_seconds: CPU time so far of every process that works on it.
        memory_bytes: Peak resident memory of the process that transfers.
    """

    transfer: Transfer
    cpu_seconds: Measure
    memory_bytes: Measure


def own_cpu_seconds() -> float:
    """This process, and those it started and waited for."""
    return sum(os.times()[:4])


def peak_bytes(pid: int | str = "self") -> int:
    """The kernel's high-water mark of a process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def cpu_seconds_of(pid: int) -> float:
    """CPU time of a living process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def ours(task: Task) -> Iterator[Way]:
    """The function's transfer process, verification included; it has brought a small object before."""
    from function.storage.objects import ObjectChangedError  # noqa: PLC0415  (only this way needs it)
    from function.transfer.client import FetcherProcess  # noqa: PLC0415  (only this way needs it)
    from function.transfer.fetching import Fetch  # noqa: PLC0415

    fetcher = FetcherProcess()
    fetcher.start()
    part = Path(task.path)
    store = f"s3://{task.bucket}"
    warm = Fetch(store, task.key, "no such content", 0, part)
    wanted = Fetch(store, task.key, task.etag, task.size_bytes, part)
    with suppress(ObjectChangedError):  # its client and connection are what was wanted
        fetcher.fetch(warm, on_bytes=lambda _count: None)
    pid = fetcher.pid or 0
    yield Way(
        lambda: fetcher.fetch(wanted, on_bytes=lambda _count: None) and None,
        lambda: own_cpu_seconds() + cpu_seconds_of(pid),
        lambda: peak_bytes(pid),
    )
    fetcher.stop()


@contextmanager
def boto3_default(task: Task) -> Iterator[Way]:
    """boto3's download_file with its defaults."""
    import boto3  # noqa: PLC0415  (only this way needs it)

    client = boto3.client("s3")
    client.head_object(Bucket=task.bucket, Key=task.key)
    yield Way(lambda: client.download_file(task.bucket, task.key, task.path), own_cpu_seconds, peak_bytes)
    client.close()


@contextmanager
def curl(task: Task) -> Iterator[Way]:
    """One stream, written by curl."""
    command = ["curl", "--silent", "--show-error", "--fail", "--output", task.path, task.url]
    yield Way(
        lambda: subprocess.run(command, check=True) and None,
        own_cpu_seconds,
        lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    )


@contextmanager
def floor(task: Task) -> Iterator[Way]:
    """What Python can't do without: ranges read by http.client into a buffer, written where they belong; no checks."""
    yield Way(lambda: read_ranges(task), own_cpu_seconds, peak_bytes)


def read_ranges(task: Task) -> None:
    """Threads with a connection each."""
    descriptor = os.open(task.path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, task.size_bytes)
    starts = iter(range(0, task.size_bytes, FLOOR_RANGE_BYTES))
    threads = [threading.Thread(target=read_some, args=(task, descriptor, starts)) for _ in range(task.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)


def read_some(task: Task, descriptor: int, starts: Iterator[int]) -> None:
    """One thread of `read_ranges`; the threads share the iterator."""
    parts = urlsplit(task.url)
    connection = http.client.HTTPConnection(parts.netloc)
    buffer = memoryview(bytearray(MIB))
    for start in starts:
        offset, last = start, min(start + FLOOR_RANGE_BYTES, task.size_bytes) - 1
        connection.request("GET", f"{parts.path}?{parts.query}", headers={"Range": f"bytes={start}-{last}"})
        answer = connection.getresponse()
        while count := answer.readinto(buffer):
            os.pwrite(descriptor, buffer[:count], offset)
            offset += count
    connection.close()


WAYS = {"comfyfn": ours, "boto3 download_file": boto3_default, "curl": curl, "http.client floor": floor}


def main() -> None:
    """Run one way."""
    request = json.loads(sys.argv[1])
    task = Task(**request["task"])
    with WAYS[request["way"]](task) as way:
        cpu, started = way.cpu_seconds(), time.monotonic()
        way.transfer()
        seconds = time.monotonic() - started
        result = {"seconds": seconds, "cpu_seconds": way.cpu_seconds() - cpu, "memory_bytes": way.memory_bytes()}
    if Path(task.path).stat().st_size != task.size_bytes:
        sys.exit(f"{request['way']}: {task.path} has the wrong length")
    print(json.dumps(result))  # noqa: T201  (read by bench.cache)


if __name__ == "__main__":
    main()

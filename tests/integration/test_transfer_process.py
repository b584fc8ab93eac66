from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.errors import StorageUnavailableError
from function.storage.objects import ObjectChangedError, ObjectMissingError
from function.transfer.client import FetcherProcess
from function.transfer.fetching import Fetch, Fetched, journal_of
from function.transfer.journal import Header, Journal, read_boot_id, read_journal
from function.transfer.pace import BUSY
from tests.support.faults import Fault, FaultyProxy
from tests.support.processes import runs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from function.storage.local import LocalStore
    from tests.support.storage import S3Server

MIB = 1024 * 1024
PART_BYTES = 65_536
CONTENT = os.urandom(16 * PART_BYTES + 17)
SMALL_PARTS = f"from function.transfer.process import main; main(part_bytes={PART_BYTES}, stall_seconds=20)"
IMPATIENT = SMALL_PARTS.replace("stall_seconds=20", "stall_seconds=1")
DEFAULT = "from function.transfer.process import main; main()"
LIMITED = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({8 * PART_BYTES}, -1)); {SMALL_PARTS}"

PARENT = """
import sys
from pathlib import Path
from function.transfer.client import FetcherProcess
from function.transfer.fetching import Fetch
fetcher = FetcherProcess()
fetcher.start()
print(fetcher.pid, flush=True)
fetcher.fetch(Fetch(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])), on_bytes=print)
"""


@contextmanager
def started(code: str = SMALL_PARTS) -> Iterator[FetcherProcess]:
    """A fetcher whose process runs this code."""
    fetcher = FetcherProcess(command=(sys.executable, "-c", code))
    try:
        yield fetcher
    finally:
        fetcher.stop()


@pytest.fixture
def wanted(s3_client: S3Client, s3_bucket: str, tmp_path: Path, request: pytest.FixtureRequest) -> Fetch:
    """An object of seventeen parts on the S3 server, and where it is to go."""
    key = f"models/{request.node.name}"
    answer = s3_client.put_object(Bucket=s3_bucket, Key=key, Body=CONTENT, ChecksumAlgorithm="CRC64NVME")
    return Fetch(f"s3://{s3_bucket}", key, answer["ETag"].strip('"'), len(CONTENT), tmp_path / "model.part")


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy without faults, which processes started by the test take for the S3 server."""
    with FaultyProxy(s3_server.endpoint_url) as proxy:
        for name, value in {**s3_server.environ, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        yield proxy


def local(store: LocalStore, part: Path, content: bytes = CONTENT) -> Fetch:
    """Put a content into the directory; the fetch of it."""
    info = store.put(part.name, content)
    return Fetch(store.url, part.name, info.etag, info.size_bytes, part)


def bring(fetcher: FetcherProcess, wanted: Fetch) -> Fetched:
    """Bring it, whoever watches."""
    return fetcher.fetch(wanted, on_bytes=lambda _count: None)


def finished_parts(wanted: Fetch) -> set[int]:
    """Parts that the journal has."""
    found = read_journal(journal_of(wanted.part))
    return set(found[1]) if found else set()


def asked_parts(proxy: FaultyProxy, *, since: int) -> set[int]:
    """Parts that were asked for, at least in part, after so many requests."""
    asked: set[int] = set()
    for request in proxy.ranges[since:]:
        asked |= set(range(request.start // PART_BYTES, -(-request.end // PART_BYTES)))
    return asked


def test_brings_objects_of_both_kinds(proxy: FaultyProxy, wanted: Fetch, local_store: LocalStore) -> None:
    """One process brings objects of S3 and of a directory, side by side, with the bytes counted in the caller."""
    del proxy
    other = local(local_store, wanted.part.with_name("other.part"))
    told: list[int] = []
    with started() as fetcher, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(fetcher.fetch, one, on_bytes=told.append) for one in (wanted, other)]
        crcs = {answer.result().crc64nvme for answer in answers}
    assert wanted.part.read_bytes() == other.part.read_bytes() == CONTENT
    assert (sum(told), len(crcs)) == (2 * len(CONTENT), 1)


def test_errors_come_back(local_store: LocalStore, tmp_path: Path) -> None:
    """What keeps the process from bringing a file is raised where it was asked for; the next fetch works."""
    wanted = local(local_store, tmp_path / "one.part")
    with started() as fetcher:
        with pytest.raises(ObjectMissingError):
            bring(fetcher, Fetch(wanted.url, "nowhere", "", 1, wanted.part))
        with pytest.raises(ObjectChangedError):
            bring(fetcher, Fetch(wanted.url, wanted.key, "other", 1, wanted.part))
        with pytest.raises(FileNotFoundError, match=r"no-directory/one\.part"):
            bring(fetcher, Fetch(wanted.url, wanted.key, wanted.etag, len(CONTENT), tmp_path / "no-directory/one.part"))
        bring(fetcher, wanted)
    assert wanted.part.read_bytes() == CONTENT


def test_caller_ends_a_fetch(proxy: FaultyProxy, wanted: Fetch) -> None:
    """An exception of the caller's ends the fetch and comes out of it; its parts are there for the next one."""
    with started() as fetcher:
        with pytest.raises(ZeroDivisionError):
            fetcher.fetch(wanted, on_bytes=lambda count: 1 // (not count))
        pid, had, asked = fetcher.pid, finished_parts(wanted), len(proxy.ranges)
        bring(fetcher, wanted)
        assert fetcher.pid == pid
    assert had
    assert asked_parts(proxy, since=asked) == set(range(17)) - had
    assert wanted.part.read_bytes() == CONTENT


@pytest.mark.parametrize("after_bytes", [0, 1000, PART_BYTES + 1, 2 * PART_BYTES - 1])
def test_killed_process_is_replaced(proxy: FaultyProxy, wanted: Fetch, after_bytes: int) -> None:
    """A fetch whose process is killed, wherever it was, goes on in another one that asks for the missing parts only."""
    proxy.spoil([Fault("stall", after_bytes)] * BUSY)
    told: list[int] = []
    with started() as fetcher, ThreadPoolExecutor(1) as pool:
        fetcher.set_busy(True)  # else there would be more connections, as these are slow
        answer = pool.submit(fetcher.fetch, wanted, on_bytes=told.append)
        had = BUSY * (after_bytes // PART_BYTES)
        wait_until(lambda: len(proxy.ranges) == BUSY and len(finished_parts(wanted)) == had, what="stalled ranges")
        kept = finished_parts(wanted)
        os.kill(fetcher.pid or 0, signal.SIGKILL)
        answer.result()
    assert asked_parts(proxy, since=BUSY) == set(range(17)) - kept
    assert wanted.part.read_bytes() == CONTENT
    assert sum(told) == len(CONTENT)


def test_process_killed_again_is_an_error(proxy: FaultyProxy, wanted: Fetch) -> None:
    """A second death during one fetch is given up in one line; the next fetch starts another process and succeeds."""
    proxy.spoil([Fault("stall", PART_BYTES)] * 2 * BUSY)
    with started() as fetcher, ThreadPoolExecutor(1) as pool:
        fetcher.set_busy(True)
        answer = pool.submit(bring, fetcher, wanted)
        for deaths in (1, 2):
            wait_until(lambda: len(proxy.ranges) == BUSY * deaths, what="stalled ranges")  # noqa: B023  (called here)
            os.kill(fetcher.pid or 0, signal.SIGKILL)
        with pytest.raises(StorageUnavailableError, match="died again"):
            answer.result()
        bring(fetcher, wanted)
    assert wanted.part.read_bytes() == CONTENT


def test_process_that_does_not_start(local_store: LocalStore, tmp_path: Path) -> None:
    """A process that ends at once is an error, and no wait."""
    wanted = local(local_store, tmp_path / "one.part")
    with started("raise SystemExit(3)") as fetcher, pytest.raises(StorageUnavailableError, match="died again"):
        bring(fetcher, wanted)


def test_process_dies_with_its_parent(proxy: FaultyProxy, wanted: Fetch) -> None:
    """The process ends when the one that started it is killed, in the middle of a fetch."""
    proxy.spoil([Fault("stall", 1000)] * 4)
    arguments = [wanted.url, wanted.key, wanted.etag, str(wanted.size_bytes), str(wanted.part)]
    with subprocess.Popen([sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        wait_until(lambda: len(proxy.ranges) > 0, what="a stalled range")
        parent.kill()
    wait_until(lambda: not runs(pid), what="the transfer process to end")


def test_stop_ends_the_process(local_store: LocalStore, tmp_path: Path) -> None:
    """Stopping ends the process, and a fetch after that has another one."""
    wanted = local(local_store, tmp_path / "one.part")
    with started() as fetcher:
        fetcher.start()
        first = fetcher.pid
        fetcher.stop()
        assert (fetcher.pid, first and runs(first)) == (None, False)
        bring(fetcher, wanted)
    assert wanted.part.read_bytes() == CONTENT


def test_stop_ends_fetches(proxy: FaultyProxy, wanted: Fetch) -> None:
    """A fetch that is under way when the process is stopped fails, and does not start another process."""
    proxy.spoil([Fault("stall", 1000)] * 4)
    with started() as fetcher, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(bring, fetcher, wanted)
        wait_until(lambda: len(proxy.ranges) == 4, what="four stalled ranges")
        fetcher.stop()
        with pytest.raises(StorageUnavailableError, match="was stopped"):
            answer.result()
        assert fetcher.pid is None


def test_a_stalled_fetch_can_be_ended(proxy: FaultyProxy, wanted: Fetch) -> None:
    """The caller is asked while nothing comes, too, and what it raises ends the fetch."""
    proxy.spoil([Fault("stall", 1000)] * 4)

    def give_up(_count: int) -> None:
        if len(proxy.ranges) == 4:
            raise TimeoutError

    with started(IMPATIENT) as fetcher:
        with pytest.raises(TimeoutError):
            fetcher.fetch(wanted, on_bytes=give_up)
        bring(fetcher, wanted)
    assert wanted.part.read_bytes() == CONTENT


@pytest.mark.parametrize("busy", [True, False])
def test_threads_step_back_while_the_gpu_works(proxy: FaultyProxy, wanted: Fetch, *, busy: bool) -> None:
    """What is said of the GPU before the process starts holds for it: threads that transfer have a lower priority."""
    seen: set[int] = set()
    with started() as fetcher:
        fetcher.set_busy(busy)
        proxy.spoil([Fault("before", action=lambda: seen.update(priorities(fetcher)))] * 4)
        bring(fetcher, wanted)
    assert (max(seen) > min(seen)) == busy


def priorities(fetcher: FetcherProcess) -> set[int]:
    """Niceness of the process's threads."""
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{fetcher.pid}/task").iterdir()}


def test_full_disk(local_store: LocalStore, tmp_path: Path) -> None:
    """A file that the disk doesn't take is an error of the disk, also in mid-file; with room the next fetch works."""
    wanted = local(local_store, tmp_path / "one.part")
    with started(LIMITED) as fetcher:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            bring(fetcher, wanted)
        wanted.part.write_bytes(b"")
        os.truncate(wanted.part, len(CONTENT))
        Journal(journal_of(wanted.part), Header(wanted.etag, len(CONTENT), PART_BYTES, read_boot_id()), {}).close()
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            bring(fetcher, wanted)
    with started() as fetcher:
        bring(fetcher, wanted)
    assert wanted.part.read_bytes() == CONTENT


def test_memory_does_not_grow_with_the_file(local_store: LocalStore, tmp_path: Path) -> None:
    """A gigabyte takes less than 60 MB of the process's memory."""
    source = Path(local_store.url.removeprefix("file://"), "big")
    source.parent.mkdir()
    source.touch()
    os.truncate(source, 1024 * MIB)
    os.utime(source, (0, 0))
    wanted = Fetch(local_store.url, "big", local_store.head("big").etag, 1024 * MIB, tmp_path / "big.part")
    warm = local(local_store, tmp_path / "warm.part")
    with started(DEFAULT) as fetcher:
        bring(fetcher, warm)
        before = memory_bytes(fetcher, "VmRSS")
        bring(fetcher, wanted)
        assert memory_bytes(fetcher, "VmHWM") - before < 60e6


def memory_bytes(fetcher: FetcherProcess, what: str) -> int:
    """A number of the kernel's on the process's memory."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{fetcher.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024

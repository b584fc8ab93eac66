from __future__ import annotations

import errno
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.errors import StorageUnavailableError
from function.storage.objects import ObjectChangedError, ObjectMissingError
from function.transfer.fetching import Fetch, journal_of
from function.transfer.journal import Header, Journal, read_journal
from function.transfer.reader import RangedFetcher
from tests.support.faults import Fault, FaultyProxy
from tests.support.storage import ignore_sleep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from function.storage.local import LocalStore
    from function.transfer.fetching import Fetched
    from tests.support.storage import S3Server

PART_BYTES = 65_536
CONTENT = os.urandom(16 * PART_BYTES + 17)
STALL_SECONDS = 0.3  # where answers stall
PATIENT_SECONDS = 30.0  # elsewhere: an answer that is only slow must not be asked for again


@pytest.fixture
def wanted(s3_client: S3Client, s3_bucket: str, tmp_path: Path, request: pytest.FixtureRequest) -> Fetch:
    """An object of seventeen parts, stored with its checksum, and where it is to go."""
    key = f"models/{request.node.name}"
    return put(s3_client, Fetch(f"s3://{s3_bucket}", key, "", 0, tmp_path / "model.part"), CONTENT)


def put(client: S3Client, wanted: Fetch, content: bytes) -> Fetch:
    """Store a content under the key; the fetch of it."""
    answer = client.put_object(
        Bucket=wanted.url.removeprefix("s3://"), Key=wanted.key, Body=content, ChecksumAlgorithm="CRC64NVME"
    )
    return replace(wanted, etag=answer["ETag"].strip('"'), size_bytes=len(content))


@contextmanager
def through(
    proxy: FaultyProxy, server: S3Server, *, stall_seconds: float = PATIENT_SECONDS, **changes: object
) -> Iterator[RangedFetcher]:
    """A fetcher that reads through the proxy; `changes` as for `RangedFetcher`."""
    with server.store("s3://any") as any_store:
        kind, client = type(any_store), partial(server.make_client, endpoint_url=proxy.url, attempts=1)
    stores = []

    def open_store(url: str) -> object:
        stores.append(kind(url, make_client=partial(client, stall_seconds=stall_seconds)))
        return stores[-1]

    try:
        options = {"part_bytes": PART_BYTES, "sleep": ignore_sleep, "open_store": open_store, **changes}
        yield RangedFetcher(**options)
    finally:
        for store in stores:
            store.close()


def fetch(fetcher: RangedFetcher, wanted: Fetch) -> Fetched:
    """Bring it, whoever watches."""
    return fetcher.fetch(wanted, on_bytes=lambda _count: None)


def requested(proxy: FaultyProxy) -> int:
    """Bytes that were asked for."""
    return sum(request.end - request.start for request in proxy.ranges)


def assert_brought(wanted: Fetch, content: bytes = CONTENT) -> None:
    """The part is the object, byte by byte."""
    assert wanted.part.read_bytes() == content


@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
@pytest.mark.parametrize("after_bytes", [0, 1000, PART_BYTES, 3 * PART_BYTES + 5])
def test_broken_answers_are_repeated(wanted: Fetch, s3_server: S3Server, kind: str, after_bytes: int) -> None:
    """A connection that is cut, reset or stalls in a range, truncating its body, costs a repetition and no byte."""
    told: list[int] = []
    faults = [Fault(kind, after_bytes), None, Fault(kind, after_bytes)]
    with (
        FaultyProxy(s3_server.endpoint_url, faults=faults) as proxy,
        through(proxy, s3_server, stall_seconds=STALL_SECONDS) as fetcher,
    ):
        fetcher.fetch(wanted, on_bytes=told.append)
    assert_brought(wanted)
    assert sum(told) == len(CONTENT)


def test_repetition_goes_on_where_it_broke_off(wanted: Fetch, s3_server: S3Server) -> None:
    """After a cut the rest of the range is asked for, not the range."""
    faults = [Fault("cut", PART_BYTES + 1000)]
    with FaultyProxy(s3_server.endpoint_url, faults=faults) as proxy, through(proxy, s3_server) as fetcher:
        fetch(fetcher, wanted)
    broken = proxy.ranges[0]
    assert broken.start + PART_BYTES + 1000 in [request.start for request in proxy.ranges]
    assert_brought(wanted)


def test_wrong_bytes_are_never_a_file(wanted: Fetch, s3_server: S3Server) -> None:
    """One bit flipped on the way is found by the object's checksum; nothing stays, and the next fetch brings it."""
    faults = [None, Fault("flip", PART_BYTES // 2)]  # a store that looks slow is asked for one part at a time
    with FaultyProxy(s3_server.endpoint_url, faults=faults) as proxy, through(proxy, s3_server) as fetcher:
        with pytest.raises(StorageUnavailableError, match="checksum"):
            fetch(fetcher, wanted)
        assert list(wanted.part.parent.iterdir()) == []
        fetch(fetcher, wanted)
    assert_brought(wanted)


def test_checksum_is_the_objects(wanted: Fetch, s3_server: S3Server) -> None:
    """The checksum that a fetch combines is the one that the store has."""
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server) as fetcher:
        found = fetch(fetcher, wanted)
    with s3_server.store(wanted.url) as store:
        assert store.head(wanted.key).crc64nvme == found.crc64nvme


def test_slow_down_is_heeded(wanted: Fetch, s3_server: S3Server) -> None:
    """A store that answers 503 SlowDown for a while is asked again with fewer connections, and the file comes."""
    faults = [Fault("slow-down")] * 4
    with FaultyProxy(s3_server.endpoint_url, faults=faults) as proxy, through(proxy, s3_server) as fetcher:
        fetch(fetcher, wanted)
    assert_brought(wanted)


@pytest.mark.parametrize("fault", [Fault("slow-down"), Fault("cut"), Fault("reset", 10), Fault("stall", 10)], ids=str)
def test_endless_faults_are_a_clear_error(wanted: Fetch, s3_server: S3Server, fault: Fault) -> None:
    """A store that never answers well is given up with one line that names the object; the next fetch works."""
    with (
        FaultyProxy(s3_server.endpoint_url, default=fault) as proxy,
        through(proxy, s3_server, stall_seconds=STALL_SECONDS) as fetcher,
        pytest.raises(StorageUnavailableError, match=f"{re.escape(wanted.key)}: the .*try later"),
    ):
        fetch(fetcher, wanted)
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server) as fetcher:
        fetch(fetcher, wanted)
    assert_brought(wanted)


def test_no_server_is_a_clear_error(wanted: Fetch, s3_server: S3Server) -> None:
    """A store that doesn't answer at all is given up, and nothing is written."""
    with FaultyProxy(s3_server.endpoint_url) as proxy:
        pass
    with through(proxy, s3_server) as fetcher, pytest.raises(StorageUnavailableError, match="no connection"):
        fetch(fetcher, wanted)
    assert list(wanted.part.parent.iterdir()) == []


def test_object_replaced_between_ranges(wanted: Fetch, s3_server: S3Server, s3_client: S3Client) -> None:
    """Ranges of two contents are never one file; the new content is another fetch, over the same part."""
    other = CONTENT[::-1]
    replaced: list[Fetch] = []
    faults = [None, None, Fault("before", action=lambda: replaced.append(put(s3_client, wanted, other)))]
    with FaultyProxy(s3_server.endpoint_url, faults=faults) as proxy, through(proxy, s3_server) as fetcher:
        with pytest.raises(ObjectChangedError):
            fetch(fetcher, wanted)
        fetch(fetcher, replaced[0])
    assert_brought(wanted, other)


def test_object_replaced_before(wanted: Fetch, s3_server: S3Server, s3_client: S3Client) -> None:
    """An object that has another ETag already is not read."""
    put(s3_client, wanted, CONTENT[::-1])
    with (
        FaultyProxy(s3_server.endpoint_url) as proxy,
        through(proxy, s3_server) as fetcher,
        pytest.raises(ObjectChangedError),
    ):
        fetch(fetcher, wanted)
    assert proxy.ranges == []


def test_object_deleted(wanted: Fetch, s3_server: S3Server) -> None:
    """An object that isn't there is said to be missing."""
    with (
        FaultyProxy(s3_server.endpoint_url) as proxy,
        through(proxy, s3_server) as fetcher,
        pytest.raises(ObjectMissingError),
    ):
        fetch(fetcher, replace(wanted, key="nowhere"))


def test_given_up_fetch_is_resumed(wanted: Fetch, s3_server: S3Server) -> None:
    """A fetch that its caller ends leaves its parts; the next one asks for the others only, and counts them all."""
    with (
        FaultyProxy(s3_server.endpoint_url, default=Fault("cut", PART_BYTES)) as proxy,
        through(proxy, s3_server) as fetcher,
        pytest.raises(ZeroDivisionError),
    ):
        fetcher.fetch(wanted, on_bytes=lambda count: 1 // (not count))
    found = read_journal(journal_of(wanted.part))
    assert found
    had_bytes = sum(found[0].length_of(part) for part in found[1])
    told: list[int] = []
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server) as fetcher:
        fetcher.fetch(wanted, on_bytes=told.append)
    assert had_bytes > 0
    assert requested(proxy) == len(CONTENT) - had_bytes
    assert (told[0], sum(told)) == (had_bytes, len(CONTENT))
    assert_brought(wanted)


def test_given_up_fetch_does_not_wait_for_its_connections(wanted: Fetch, s3_server: S3Server) -> None:
    """However long they may be silent: a byte now and then would keep them as long."""
    with (
        ThreadPoolExecutor(1) as pool,
        FaultyProxy(s3_server.endpoint_url, default=Fault("stall", 1000)) as proxy,
        through(proxy, s3_server, stall_seconds=3600.0) as fetcher,
    ):
        reports: list[int] = []

        def give_up(count: int) -> None:
            reports.append(count)
            if proxy.ranges and len(reports) > 10:  # half a second: by then it waits for the rest of an answer
                raise ZeroDivisionError

        assert isinstance(pool.submit(fetcher.fetch, wanted, on_bytes=give_up).exception(30), ZeroDivisionError)


def test_finished_part_is_not_fetched_again(wanted: Fetch, s3_server: S3Server) -> None:
    """A process that died after the last byte and before the file had its name costs no byte."""
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server) as fetcher:
        first = fetch(fetcher, wanted)
        asked = requested(proxy)
        assert fetch(fetcher, wanted) == first
    assert requested(proxy) == asked == len(CONTENT)


def test_parts_of_another_boot_are_read_again(wanted: Fetch, s3_server: S3Server) -> None:
    """After a crash of the machine, parts that the disk lost are fetched again and the others are kept."""
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server, boot_id="one") as fetcher:
        fetch(fetcher, wanted)
    with wanted.part.open("r+b") as part:
        part.seek(5 * PART_BYTES + 1)
        part.write(b"\0" * 100)
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server, boot_id="two") as fetcher:
        fetch(fetcher, wanted)
    assert [(request.start, request.end) for request in proxy.ranges] == [(5 * PART_BYTES, 6 * PART_BYTES)]
    assert_brought(wanted)


def test_a_lying_journal_is_found_out(wanted: Fetch, s3_server: S3Server) -> None:
    """Parts that don't have the bytes their journal claims fail the object's checksum."""
    wanted.part.write_bytes(bytes(len(CONTENT)))
    header = Header(wanted.etag, wanted.size_bytes, PART_BYTES, "one")
    with Journal(journal_of(wanted.part), header, dict.fromkeys(header.parts, 7)):
        pass
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server, boot_id="one") as fetcher:
        with pytest.raises(StorageUnavailableError, match="checksum"):
            fetch(fetcher, wanted)
        fetch(fetcher, wanted)
    assert_brought(wanted)


@pytest.mark.parametrize("busy", [True, False])
def test_a_slow_store_gets_more_connections_unless_the_gpu_works(
    wanted: Fetch, s3_server: S3Server, s3_client: S3Client, *, busy: bool
) -> None:
    """While it works a fetch has no more than two answers on the way."""
    long = put(s3_client, wanted, 4 * CONTENT)
    slow = Fault("before", action=lambda: time.sleep(0.2))
    with FaultyProxy(s3_server.endpoint_url, default=slow) as proxy, through(proxy, s3_server) as fetcher:
        fetcher.busy = busy
        fetch(fetcher, long)
    assert (proxy.peak <= 2) == busy
    assert_brought(long, 4 * CONTENT)


def test_directory_that_takes_no_file(wanted: Fetch, s3_server: S3Server) -> None:
    """A part that may not be made is an error of the disk, before a byte is asked for."""
    with (
        FaultyProxy(s3_server.endpoint_url) as proxy,
        through(proxy, s3_server) as fetcher,
        pytest.raises(OSError, match=r"/sys/model\.part") as caught,
    ):
        fetch(fetcher, replace(wanted, part=Path("/sys/model.part")))
    assert caught.value.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
    assert proxy.ranges == []


def test_empty_object(s3_client: S3Client, wanted: Fetch, s3_server: S3Server) -> None:
    """An object without bytes is a file without bytes."""
    empty = put(s3_client, wanted, b"")
    with FaultyProxy(s3_server.endpoint_url) as proxy, through(proxy, s3_server) as fetcher:
        assert fetch(fetcher, empty).crc64nvme == "AAAAAAAAAAA="
    assert_brought(empty, b"")


def test_directories_are_read_the_same_way(local_store: LocalStore, tmp_path: Path) -> None:
    """A `file://` store has ranges as well, so that parts, journal and checksum are the same."""
    info = local_store.put("model", CONTENT)
    wanted = Fetch(local_store.url, "model", info.etag, info.size_bytes, tmp_path / "model.part")
    fetch(RangedFetcher(part_bytes=PART_BYTES), wanted)
    assert_brought(wanted)


def test_directory_object_replaced(local_store: LocalStore, tmp_path: Path) -> None:
    """A file that was replaced has another ETag, and is not brought as the old one."""
    info = local_store.put("model", CONTENT)
    wanted = Fetch(local_store.url, "model", info.etag, info.size_bytes, tmp_path / "model.part")
    local_store.put("model", CONTENT[::-1])
    with pytest.raises(ObjectChangedError):
        fetch(RangedFetcher(part_bytes=PART_BYTES), wanted)

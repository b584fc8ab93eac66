"""What every store does: the same tests for a directory and for a bucket of a real S3 server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

import pytest

from function.errors import InputRefusedError, StorageUnavailableError
from function.storage import probe_create
from function.storage.objects import ObjectChangedError, ObjectMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from function.storage.objects import ObjectStore

MIB = 1024 * 1024

SPECIAL_KEYS = [
    "plain.png",
    "with space/and  two.png",
    "plus+and&equals=1;semi,comma.png",
    "literal%2Fpercent/100%.png",
    "question?mark#hash.png",
    "quotes'\"<>|*:.png",
    "umlaut-\u00e4.png",
    "umlaut-a\u0308.png",
    "\u65e5\u672c\u8a9e/\U0001f3a8.png",
    ".hidden/..dots../...",
    ".comfyfn/lock",
    "tilde~/$HOME/`id`",
    "-leading/dash",
]

BAD_KEYS = [
    "",
    "/absolute",
    "trailing/",
    "double//slash",
    ".",
    "a/./b",
    "..",
    "../outside",
    "a/../../outside",
    "back\\slash",
    "nul\0",
    "new\nline",
    "tab\t",
    "delete\x7f",
    "half\ud800surrogate",
    "long" * 257,
]

RACER = """
import sys
from function.storage import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(*(int(store.create(f"claims/{n}.json", sys.argv[2].encode())) for n in range(20)))
"""

UPLOADER = r"""
import re, sys
from pathlib import Path
from function.storage.local import LocalStore
from function.storage.s3 import S3Store

def peak_bytes():  # not getrusage's, which a process inherits from its parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

class Stream:
    position = 0

    def read(self, size):
        start = self.position % 8
        self.position += size
        return (b"abcdefgh" * (size // 8 + 2))[start : start + size]

url = sys.argv[1]
store = S3Store(url, part_bytes=5 * 2**20) if url.startswith("s3:") else LocalStore(url)
store.put("warm-up", b"")
before = peak_bytes()
info = store.upload("big.bin", Stream(), size_bytes=80 * 2**20, media_type="application/octet-stream")
print(info.size_bytes, peak_bytes() - before)
"""


@pytest.fixture
def environ(store: ObjectStore, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment in which another process reaches the same store."""
    account = request.getfixturevalue("s3_server").environ if store.url.startswith("s3:") else {}
    return {**os.environ, **account}


def test_put_get_and_head_agree(store: ObjectStore) -> None:
    """What was put is read back, and HEAD describes it as the answer to the write did."""
    written = store.put("jobs/1/job.json", b"{}", media_type="application/json")
    head = store.head("jobs/1/job.json")
    assert store.get("jobs/1/job.json", max_bytes=2) == b"{}"
    assert (head.key, head.size_bytes, head.media_type) == ("jobs/1/job.json", 2, "application/json")
    assert (head.etag, head.size_bytes, head.media_type) == (written.etag, written.size_bytes, written.media_type)
    assert head.modified_at.tzinfo is UTC
    assert abs(head.modified_at - written.modified_at) < timedelta(seconds=5)


def test_put_replaces_and_changes_the_etag(store: ObjectStore) -> None:
    """A second put replaces the content, and the ETag with it, even if the size stays."""
    first = store.put("beat", b"1")
    second = store.put("beat", b"2")
    assert store.get("beat", max_bytes=1) == b"2"
    assert first.etag != second.etag == store.head("beat").etag


def test_get_refuses_what_is_too_large(store: ObjectStore) -> None:
    """An object larger than the caller's limit is an error that names it, not a half answer."""
    store.put("big.json", b"12345")
    assert store.get("big.json", max_bytes=5) == b"12345"
    with pytest.raises(StorageUnavailableError, match=r"big\.json: larger than 4 bytes"):
        store.get("big.json", max_bytes=4)


def test_missing_object(store: ObjectStore, tmp_path: Path) -> None:
    """Every way to read says that there is no such object, by its URL; deleting it is no error."""
    for read in (
        lambda: store.head("none"),
        lambda: store.get("none", max_bytes=1),
        lambda: store.get_range("none", 0, 1, etag="x"),
        lambda: store.download("none", tmp_path / "none", etag="x"),
    ):
        with pytest.raises(ObjectMissingError) as caught:
            read()
        assert str(caught.value) == store.object_url("none")
    store.delete("none")


def test_range_reads(store: ObjectStore) -> None:
    """A range is exact, shorter at the end and empty behind it."""
    etag = store.put("file", b"0123456789").etag
    assert store.get_range("file", 3, 4, etag=etag) == b"3456"
    assert store.get_range("file", 8, 4, etag=etag) == b"89"
    assert store.get_range("file", 10, 4, etag=etag) == b""
    assert store.get_range("file", 3, 0, etag=etag) == b""


def test_changed_etag(store: ObjectStore, tmp_path: Path) -> None:
    """Ranges and downloads of content that has been replaced are refused."""
    etag = store.put("model", b"old").etag
    store.put("model", b"new")
    with pytest.raises(ObjectChangedError):
        store.get_range("model", 0, 3, etag=etag)
    with pytest.raises(ObjectChangedError):
        store.download("model", tmp_path / "model", etag=etag)


@pytest.mark.parametrize("size_bytes", [0, 1, 12 * MIB + 1])
def test_download(store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
    """A download replaces the file's content, whatever its size, and reports every byte once."""
    data = os.urandom(size_bytes)
    path = tmp_path / "model.part"
    path.write_bytes(b"left over")
    reported: list[int] = []
    etag = store.put("model", data).etag
    store.download("model", path, etag=etag, on_bytes=reported.append)
    assert path.read_bytes() == data
    assert sum(reported) == size_bytes


def test_create_writes_only_once(store: ObjectStore) -> None:
    """Create refuses an existing key and leaves its content alone; after a delete it writes again."""
    assert store.create("claim", b"first")
    assert not store.create("claim", b"second")
    assert store.get("claim", max_bytes=9) == b"first"
    store.delete("claim")
    assert store.create("claim", b"third")


def test_create_among_threads(store: ObjectStore) -> None:
    """Of threads that create the same key at once exactly one wins, and its content stays."""
    start = threading.Barrier(8)

    def race(n: int) -> bool:
        start.wait()
        return store.create("claim", str(n).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert won.count(True) == 1
    assert store.get("claim", max_bytes=1) == str(won.index(True)).encode()


def test_create_among_processes(store: ObjectStore, environ: dict[str, str]) -> None:
    """Of processes that create the same keys at once exactly one wins each."""
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RACER, store.url, str(n)],
                    env=environ,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for n in range(3)
        ]
        for racer in racers:
            assert racer.stdout
            assert racer.stdout.readline() == b"ready\n"
        for racer in racers:
            assert racer.stdin
            racer.stdin.write(b"go\n")
            racer.stdin.flush()
        won = [[int(word) for word in racer.communicate()[0].split()] for racer in racers]
    assert [sum(winners) for winners in zip(*won, strict=True)] == [1] * 20


@pytest.mark.parametrize("key", SPECIAL_KEYS)
def test_special_keys(store: ObjectStore, key: str) -> None:
    """A key comes back from a listing as it was written, byte for byte, and names the object everywhere."""
    store.put(key, key.encode())
    assert [info.key for info in store.list_objects()] == [key]
    assert [info.key for info in store.list_objects(key[:-1])] == [key]
    assert store.head(key).size_bytes == len(key.encode())
    assert store.get(key, max_bytes=1024) == key.encode()
    assert not store.create(key, b"")
    store.delete(key)
    assert list(store.list_objects()) == []


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused(store: ObjectStore, tmp_path: Path, key: str) -> None:
    """No method takes a key that leads elsewhere or that not every store can hold."""
    for use in (
        lambda: store.object_url(key),
        lambda: store.head(key),
        lambda: store.get(key, max_bytes=1),
        lambda: store.get_range(key, 0, 1, etag="x"),
        lambda: store.download(key, tmp_path / "x", etag="x"),
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.upload(key, io.BytesIO(), size_bytes=0, media_type="text/plain"),
        lambda: store.delete(key),
        lambda: store.presign(key, expires_seconds=1),
    ):
        with pytest.raises(InputRefusedError) as caught:
            use()
        assert caught.value.message.isprintable()


def test_a_key_beside_keys_below_it(store: ObjectStore) -> None:
    """The keys `a` and `a/b` are two objects (SeaweedFS refuses the other order of writing)."""
    keys = ["a", "a/b", "a/b/c"]
    for key in keys:
        assert store.create(key, key.encode())
    for key in keys:
        assert not store.create(key, b"")
        assert store.get(key, max_bytes=9) == key.encode()
    assert [info.key for info in store.list_objects()] == keys
    store.delete("a/b")
    assert [info.key for info in store.list_objects()] == ["a", "a/b/c"]


def test_listing_is_sorted_and_starts_where_asked(store: ObjectStore) -> None:
    """A listing is in order, takes any beginning of a key as its prefix and leaves out what it starts after."""
    keys = ["b/2", "c", "B", "b/10", "b/1", "b\u00e4", "bz", "b/1/x"]
    for key in keys:
        store.put(key, b"x")
    assert [info.key for info in store.list_objects()] == ["B", "b/1", "b/1/x", "b/10", "b/2", "bz", "b\u00e4", "c"]
    assert [info.key for info in store.list_objects("b/1")] == ["b/1", "b/1/x", "b/10"]
    assert [info.key for info in store.list_objects("b/", start_after="b/10")] == ["b/2"]
    assert [info.key for info in store.list_objects(start_after="b/99")] == ["bz", "b\u00e4", "c"]
    assert list(store.list_objects("none/")) == []


def test_listing_describes_objects(store: ObjectStore) -> None:
    """A listing gives sizes and times; an ETag only where the store has it without reading the content."""
    store.put("x", b"123")
    (listed,) = store.list_objects()
    head = store.head("x")
    assert (listed.size_bytes, listed.modified_at.tzinfo) == (3, UTC)
    assert abs(listed.modified_at - head.modified_at) < timedelta(seconds=1)
    assert listed.etag in {"", head.etag}


def test_upload_from_a_stream(store: ObjectStore) -> None:
    """An upload reads as much of the stream as is the object, from where the stream stands."""
    source = io.BytesIO(b"header-content-rest")
    source.seek(7)
    info = store.upload("out.png", source, size_bytes=7, media_type="image/png")
    assert (info.size_bytes, info.media_type) == (7, "image/png")
    assert store.get("out.png", max_bytes=7) == b"content"
    assert source.read() == b"-rest"


@pytest.mark.parametrize("size_bytes", [10, 17 * MIB])
def test_upload_of_a_stream_that_ends_early(store: ObjectStore, size_bytes: int) -> None:
    """A stream that ends early is an error, and no object appears."""
    with pytest.raises(ValueError, match="ended early"):
        store.upload("out", io.BytesIO(b"x" * (size_bytes - 1)), size_bytes=size_bytes, media_type="text/plain")
    assert list(store.list_objects()) == []


def test_large_upload_takes_bounded_memory(store: ObjectStore, environ: dict[str, str], tmp_path: Path) -> None:
    """A stream is stored by a process that grows by less than its size, and its content is right."""
    command = [sys.executable, "-c", UPLOADER, store.url]
    printed = subprocess.run(command, env=environ, check=True, capture_output=True).stdout
    size_bytes, growth_bytes = (int(word) for word in printed.split())
    assert size_bytes == 80 * MIB
    assert growth_bytes < 64 * MIB  # S3: 49 for 40, 80 and 160 MiB alike, with parts of 5 MiB
    store.download("big.bin", tmp_path / "big.bin", etag=store.head("big.bin").etag)
    assert (tmp_path / "big.bin").read_bytes() == b"abcdefgh" * (10 * MIB)


def test_probe_passes_and_cleans_up(store: ObjectStore) -> None:
    """The probe for create-if-absent accepts the store and leaves nothing behind."""
    probe_create(store)
    assert list(store.list_objects()) == []


def test_urls(store: ObjectStore) -> None:
    """An object's URL is the store's with the key, unescaped."""
    assert store.object_url("a b/\u00e4.png") == f"{store.url}/a b/\u00e4.png"

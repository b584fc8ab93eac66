"""What only a directory does: files dropped by hand, links, leftovers, ETags, failing disks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from function.errors import InputRefusedError, StorageUnavailableError
from function.storage.local import LocalStore
from function.storage.objects import ObjectMissingError

HOUR = 3600.0

FULL_DISK = """
import resource, sys
from function.errors import StorageUnavailableError
from function.storage.local import LocalStore
store = LocalStore(sys.argv[1])
store.put("first", b"x")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.put("second", b"x" * 8192)
except StorageUnavailableError as error:
    print(error.message)
"""


@pytest.fixture
def root(local_store: LocalStore) -> Path:
    """The store's directory, made."""
    root = Path(local_store.url.removeprefix("file://"))
    root.mkdir()
    return root


def keys(store: LocalStore) -> list[str]:
    """Every key of the store."""
    return [info.key for info in store.list_objects()]


def test_files_dropped_by_hand_are_objects(local_store: LocalStore, root: Path) -> None:
    """A file that somebody copies into the directory is the object of its path, with its sha256 as the ETag."""
    folder = root / "upscale_models"
    folder.mkdir()
    (folder / "x 100%.safetensors").write_bytes(b"weights")
    info = local_store.head("upscale_models/x 100%.safetensors")
    assert (info.size_bytes, info.etag) == (7, hashlib.sha256(b"weights").hexdigest())
    assert keys(local_store) == ["upscale_models/x 100%.safetensors"]


def test_objects_are_files_of_their_name(local_store: LocalStore, root: Path) -> None:
    """An object is found on disk where its key says, with the usual permissions."""
    local_store.put("outputs/1/image.png", b"pixels")
    path = root / "outputs" / "1" / "image.png"
    assert path.read_bytes() == b"pixels"
    probe = root / "probe"
    probe.touch()
    assert path.stat().st_mode == probe.stat().st_mode


@pytest.mark.parametrize("order", [("a/b/c", "a/b", "a"), ("a", "a/b/c", "a/b"), (".comfyfn/tmp", ".comfyfn", "a")])
def test_colliding_keys_in_any_order(local_store: LocalStore, order: tuple[str, ...]) -> None:
    """Keys that can't all lie in their plain places are objects all the same, and nothing is left of them at last."""
    for key in order:
        assert local_store.create(key, key.encode())
        assert not local_store.create(key, b"")
    assert keys(local_store) == sorted(order)
    for key in order:
        assert local_store.get(key, max_bytes=99) == key.encode()
        local_store.delete(key)
    assert keys(local_store) == []


def test_listing_order_of_signs_before_the_slash(local_store: LocalStore) -> None:
    """The keys `a-x` and `a.txt` come before `a/b`, as their bytes do, though `a` comes first."""
    for key in ("a/b", "a.txt", "a-x", "a", "a0"):
        local_store.put(key, b"")
    assert keys(local_store) == ["a", "a-x", "a.txt", "a/b", "a0"]


def test_links_are_not_followed(local_store: LocalStore, root: Path, tmp_path: Path) -> None:
    """Neither a link to a file outside nor one to a directory outside makes it readable, listed or writable."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    assert keys(local_store) == []
    for key in ("file", "folder/secret"):
        with pytest.raises(ObjectMissingError):
            local_store.get(key, max_bytes=99)
        assert local_store.create(key, b"ours")
        assert local_store.get(key, max_bytes=99) == b"ours"
    assert (outside / "secret").read_bytes() == b"secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_the_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """The directory of the settings itself may be reached through a link."""
    (tmp_path / "link").symlink_to(root)
    store = LocalStore(f"file://{tmp_path}/link")
    store.put("a/b", b"x")
    assert (root / "a" / "b").read_bytes() == b"x"
    assert keys(store) == ["a/b"]


def test_what_is_no_file_is_no_object(local_store: LocalStore, root: Path) -> None:
    """A pipe in the directory is no object, and reading its key doesn't wait for a writer."""
    os.mkfifo(root / "pipe")
    assert keys(local_store) == []
    with pytest.raises(ObjectMissingError):
        local_store.head("pipe")


def test_names_that_are_no_keys_are_left_out(local_store: LocalStore, root: Path) -> None:
    """Files whose names no key can have are not listed."""
    (root / "back\\slash").touch()
    (root / os.fsdecode(b"latin-\xe4")).touch()
    (root / "good").touch()
    assert keys(local_store) == ["good"]


def test_names_too_long_for_the_disk_are_refused(local_store: LocalStore) -> None:
    """A segment longer than the file system takes is refused, reading and writing."""
    for use in (lambda: local_store.head("x" * 256), lambda: local_store.put("x" * 256, b"")):
        with pytest.raises(InputRefusedError, match="too long"):
            use()


def test_etag_of_a_file_changed_in_place(local_store: LocalStore, root: Path) -> None:
    """A file that is rewritten in place at once, with its size kept, has another ETag."""
    path = root / "model"
    path.write_bytes(b"old")
    old = local_store.head("model").etag
    path.write_bytes(b"new")
    assert local_store.head("model").etag != old


def test_etag_of_a_file_with_its_time_set_back(root: Path) -> None:
    """A replaced file with the old one's size and mtime has another ETag, also when the old one was remembered."""
    store = LocalStore(f"file://{root}", clock=lambda: time.time() + HOUR)
    path = root / "model"
    path.write_bytes(b"old")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    old = store.head("model").etag
    (root / "copy").write_bytes(b"new")
    os.utime(root / "copy", ns=times)
    (root / "copy").replace(path)
    assert store.head("model").etag != old


def test_etag_is_computed_once(root: Path) -> None:
    """The ETag of a file left alone is known without reading it again."""
    store = LocalStore(f"file://{root}", clock=lambda: time.time() + HOUR)
    path = root / "model"
    path.write_bytes(bytes(64 * 1024 * 1024))
    store.head("model")
    started = time.process_time()
    store.head("model")
    assert time.process_time() - started < 0.01  # hashing it takes 0.04 s at least


def test_a_listing_reads_no_content(local_store: LocalStore) -> None:
    """The ETag and media type in a listing are empty."""
    local_store.put("model.png", b"x")
    (info,) = local_store.list_objects()
    assert (info.etag, info.media_type) == ("", "")


def test_unfinished_files_are_invisible(local_store: LocalStore) -> None:
    """While a stream is being stored, nothing of it can be listed; what stood there before is still read."""
    local_store.put("out", b"before")
    seen: list[list[str]] = []

    class Stream:
        def read(self, size: int) -> bytes:
            seen.append(keys(local_store))
            assert local_store.get("out", max_bytes=9) == b"before"
            return b"x" * size

    local_store.upload("out", Stream(), size_bytes=5)
    assert seen[0] == ["out"]
    assert local_store.get("out", max_bytes=9) == b"xxxxx"


def test_leftovers_of_killed_writers_are_swept(root: Path) -> None:
    """The first write removes unfinished files that are a day old, and leaves younger ones alone."""
    unfinished = root / ".comfyfn" / "tmp"
    unfinished.mkdir(parents=True)
    for name, age_seconds in (("old", 25 * HOUR), ("young", 23 * HOUR)):
        (unfinished / name).touch()
        os.utime(unfinished / name, times=(time.time() - age_seconds,) * 2)
    LocalStore(f"file://{root}").put("x", b"")
    assert [path.name for path in unfinished.iterdir()] == ["young"]


def test_delete_removes_empty_directories(local_store: LocalStore, root: Path) -> None:
    """A deleted object takes the directories with it that it leaves empty, but not the root."""
    local_store.put("jobs/1/job.json", b"")
    local_store.put("jobs/2", b"")
    local_store.delete("jobs/1/job.json")
    assert sorted(path.name for path in root.iterdir()) == [".comfyfn", "jobs"]
    assert [path.name for path in (root / "jobs").iterdir()] == ["2"]


def test_reading_makes_nothing(local_store: LocalStore, tmp_path: Path) -> None:
    """Reads, listings and deletes of a store that was never written to make no directory."""
    assert keys(local_store) == []
    local_store.delete("x")
    with pytest.raises(ObjectMissingError):
        local_store.head("x")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk(tmp_path: Path) -> None:
    """A write that fails names the store and the system's reason, and leaves neither object nor unfinished file."""
    url = f"file://{tmp_path}"
    message = subprocess.check_output([sys.executable, "-c", FULL_DISK, url], text=True)
    assert message == f"{url}: File too large: check the directory and its disk\n"
    assert keys(LocalStore(url)) == ["first"]
    assert list((tmp_path / ".comfyfn" / "tmp").iterdir()) == []


def test_a_root_that_is_no_directory(tmp_path: Path) -> None:
    """A write below a file is an error that names the store."""
    (tmp_path / "file").touch()
    store = LocalStore(f"file://{tmp_path}/file")
    with pytest.raises(StorageUnavailableError, match=rf"^file://{tmp_path}/file: "):
        store.put("x", b"")


def test_errors_of_the_target_are_the_callers(local_store: LocalStore, tmp_path: Path) -> None:
    """A download to where nothing can be written is the caller's OSError, not the store's failure."""
    etag = local_store.put("x", b"x").etag
    with pytest.raises(FileNotFoundError):
        local_store.download("x", tmp_path / "none" / "x", etag=etag)


def test_presign_is_a_path_of_the_function(local_store: LocalStore) -> None:
    """The link is the path under which the function serves the object, percent-encoded."""
    link = local_store.presign("outputs/1/a b?\u00e4%.png", expires_seconds=60)
    assert link == "/outputs/1/a%20b%3F%C3%A4%25.png"

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from function.errors import InputRefusedError
from function.models.books import read_books, remove_strays
from function.models.directory import ModelDirectory, can_write, free_disk_bytes, show_change
from function.models.records import Record, name_of
from function.transfer.fetching import journal_of

if TYPE_CHECKING:
    from pathlib import Path

    from function.models.books import Books

ONE = Record("checkpoints/one.safetensors", "etag-1", 3, "file:///store/one", "crc")
TWO = Record("loras/sub/two.safetensors", "etag-2", 3, "file:///store/two", "crc")
DAY_SECONDS = 24 * 3600


def begin(directory: ModelDirectory, record: Record, content: bytes = b"abc") -> Path:
    """Leave a download as a killed process does; its part."""
    directory.make_folder(record.key)
    directory.reserve(record)
    part = directory.part(record)
    part.write_bytes(content)
    journal_of(part).touch()
    return part


def place(directory: ModelDirectory, record: Record, content: bytes = b"abc") -> None:
    """Put a file in place as a download does."""
    begin(directory, record, content)
    directory.commit(record)


def books(root: Path) -> Books:
    """What another process finds."""
    directory = ModelDirectory(root)
    with directory.locked():
        return read_books(directory)


def own(root: Path, suffix: str) -> list[Path]:
    """The directory's own files of one kind."""
    return sorted((root / ".comfyfn").glob(f"*.{suffix}"))


def test_another_process_finds_files_in_order_of_use(tmp_path: Path) -> None:
    """A process finds what others brought, least recently used first."""
    directory = ModelDirectory(tmp_path)
    place(directory, ONE)
    place(directory, TWO)
    directory.touch(ONE.key)
    found = books(tmp_path)
    assert [item.record for item in found.present.values()] == [TWO, ONE]
    assert found.size_bytes == 6


def test_use_is_later_whatever_the_clock_says(tmp_path: Path) -> None:
    """Uses count as later than those that were seen before, even if the wall clock was set back."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = own(tmp_path, "json")
    ahead = record.stat().st_mtime_ns + 3600 * 10**9
    os.utime(record, ns=(ahead, ahead))
    directory = ModelDirectory(tmp_path)
    with directory.locked():
        read_books(directory)
    place(directory, TWO)
    assert list(books(tmp_path).present) == [ONE.key, TWO.key]


def test_download_is_invisible_until_it_is_whole(tmp_path: Path) -> None:
    """A file that is being downloaded lies beside its place under a name that is no model's."""
    directory = ModelDirectory(tmp_path)
    part = begin(directory, ONE)
    assert part.parent == tmp_path / "checkpoints"
    assert not part.name.endswith((".safetensors", ".sft", ".ckpt", ".pt", ".bin", ".pth"))
    assert directory.find(ONE.key) is None
    directory.commit(ONE)
    assert [path.name for path in part.parent.iterdir()] == ["one.safetensors"]


def test_part_is_of_one_content(tmp_path: Path) -> None:
    """The same content has the same part in every process; another ETag or source has another one."""
    directory = ModelDirectory(tmp_path)
    parts = {directory.part(record) for record in (ONE, replace(ONE, etag="e"), replace(ONE, source="s"))}
    assert len(parts) == 3
    assert ModelDirectory(tmp_path).part(ONE) in parts


def test_new_file_changes_its_directory(tmp_path: Path) -> None:
    """Putting a file in place changes the directory's mtime, by which ComfyUI notices new files."""
    directory = ModelDirectory(tmp_path)
    part = begin(directory, ONE)
    os.utime(part.parent, ns=(1, 1))
    directory.commit(ONE)
    assert part.parent.stat().st_mtime_ns > 1


@pytest.mark.parametrize("ahead_ns", [0, 3600 * 10**9])
def test_mount_that_keeps_the_mtime(tmp_path: Path, ahead_ns: int) -> None:
    """A mtime that a rename left as it was is set, by more than the float misses that ComfyUI compares."""
    before_ns = tmp_path.stat().st_mtime_ns + ahead_ns
    os.utime(tmp_path, ns=(before_ns, before_ns))
    before = tmp_path.stat().st_mtime
    show_change(tmp_path, before_ns)
    assert tmp_path.stat().st_mtime > before
    changed_ns = tmp_path.stat().st_mtime_ns
    show_change(tmp_path, before_ns)
    assert tmp_path.stat().st_mtime_ns == changed_ns


@pytest.mark.parametrize("content", [b"ab", None])
def test_record_without_its_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that has another size than its record says is removed; a record without a file is dropped."""
    place(ModelDirectory(tmp_path), ONE)
    file = tmp_path / ONE.key
    file.unlink() if content is None else file.write_bytes(content)
    assert books(tmp_path).present == {}
    assert not file.exists()
    assert own(tmp_path, "json") == []


def test_changed_file_of_a_running_job(tmp_path: Path) -> None:
    """A file that somebody changed while a job has it pinned keeps its room until the job ends."""
    directory = ModelDirectory(tmp_path)
    place(directory, ONE)
    with directory.pin_under_lock(ONE.key):
        (tmp_path / ONE.key).unlink()
        assert books(tmp_path).size_bytes == 3
    assert books(tmp_path).size_bytes == 0


def test_file_that_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be put in order is logged and counted on; reading the books never fails for it."""
    place(ModelDirectory(tmp_path), ONE)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").touch()
    assert books(tmp_path).size_bytes == 3
    assert "can't be put in order" in caplog.text


def test_unfinished_download_is_kept(tmp_path: Path) -> None:
    """What a killed process left of a download is counted in full, and lies where the next one goes on with it."""
    part = begin(ModelDirectory(tmp_path), replace(ONE, crc64nvme=""), b"a")
    found = books(tmp_path)
    assert (list(found.left), found.arriving, found.size_bytes) == ([ONE.key], {}, 3)
    assert part.exists()


def test_download_of_a_living_process(tmp_path: Path) -> None:
    """What somebody is bringing is no leftover."""
    directory = ModelDirectory(tmp_path)
    begin(directory, replace(ONE, crc64nvme=""), b"a")
    lock = directory.write_lock(ONE.key)
    assert lock
    with lock:
        assert (list(books(tmp_path).arriving), books(tmp_path).left) == ([ONE.key], {})
        assert directory.write_lock(ONE.key) is None


def test_old_leftovers_are_removed(tmp_path: Path) -> None:
    """What nobody went on with for a day is removed, part, journal, record and locks."""
    directory = ModelDirectory(tmp_path)
    part = begin(directory, replace(ONE, crc64nvme=""), b"a")
    directory.pin_under_lock(ONE.key).release()
    then = part.stat().st_mtime - DAY_SECONDS - 1
    os.utime(part, (then, then))
    assert books(tmp_path).size_bytes == 0
    assert list(part.parent.iterdir()) == []
    assert [path.name for path in (tmp_path / ".comfyfn").iterdir()] == ["lock"]


def test_record_of_nothing(tmp_path: Path) -> None:
    """A reservation whose process was killed before the first byte is gone at once."""
    ModelDirectory(tmp_path).reserve(replace(ONE, crc64nvme=""))
    assert books(tmp_path).size_bytes == 0
    assert own(tmp_path, "arriving") == []


def test_strays_are_removed(tmp_path: Path) -> None:
    """Parts and journals without a record are removed at a start, and nothing else."""
    directory = ModelDirectory(tmp_path)
    part = begin(directory, replace(ONE, crc64nvme=""), b"a")
    for name in (".x.comfyfn-part", ".x.comfyfn-part.journal", "by-hand.part"):
        (part.parent / name).touch()
    remove_strays(directory)
    assert {path.name for path in part.parent.iterdir()} == {part.name, journal_of(part).name, "by-hand.part"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("steps", range(4))
def test_killed_while_a_file_is_put_in_place(tmp_path: Path, *, old: bool, steps: int) -> None:
    """Whoever comes after a process that died between two steps takes the others: the new file is in place."""
    directory = ModelDirectory(tmp_path)
    if old:
        place(directory, ONE)
    new = replace(ONE, etag="etag-new", size_bytes=4, crc64nvme="crc-new")
    part = begin(directory, new, b"new!")
    record = tmp_path / ".comfyfn" / name_of(ONE.key)
    if steps > 0:
        record.with_suffix(".json").unlink(missing_ok=True)
    if steps > 1:
        part.replace(tmp_path / ONE.key)
    if steps > 2:
        record.with_suffix(".arriving").replace(record.with_suffix(".json"))
    found = books(tmp_path)
    assert [item.record for item in found.present.values()] == [new]
    assert (tmp_path / ONE.key).read_bytes() == b"new!"
    assert (found.size_bytes, own(tmp_path, "arriving")) == (4, [])


def test_killed_while_a_record_is_written(tmp_path: Path) -> None:
    """A torn record was never in its place: it is removed, and what it was to replace stays."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = own(tmp_path, "json")
    record.with_suffix(".tmp").write_text('{"key": "check')
    assert list(books(tmp_path).present) == [ONE.key]
    assert own(tmp_path, "tmp") == []


GOOD = asdict(ONE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        json.dumps(GOOD | {"key": 1}).encode(),
        json.dumps(GOOD | {"size_bytes": True}).encode(),
        json.dumps(GOOD | {"size_bytes": -1}).encode(),
        json.dumps(GOOD | {"boot_ids": [1]}).encode(),
        json.dumps(GOOD | {"boot_ids": 1}).encode(),
        json.dumps(GOOD | {"more": 1}).encode(),
        json.dumps({"key": ONE.key, "etag": "e", "size_bytes": 3}).encode(),
        json.dumps(GOOD | {"key": "checkpoints/other.safetensors"}).encode(),
    ],
)
def test_corrupt_record(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A record that can't be read is dropped with a warning; its file stays and nobody else's is touched."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = own(tmp_path, "json")
    record.write_bytes(content)
    record.with_suffix(".arriving").write_bytes(content)
    assert books(tmp_path).size_bytes == 0
    assert (tmp_path / ONE.key).exists()
    assert own(tmp_path, "json") + own(tmp_path, "arriving") == []
    assert "is ignored" in caplog.text


def test_record_that_points_outside(tmp_path: Path) -> None:
    """A record never makes the cache remove a file outside the model directory."""
    outside = replace(ONE, key="../precious.safetensors")
    (tmp_path / "precious.safetensors").write_bytes(b"other size")
    root = tmp_path / "models"
    place(ModelDirectory(root), ONE)
    (root / ".comfyfn" / f"{name_of(outside.key)}.json").write_text(json.dumps(asdict(outside)))
    assert list(books(root).present) == [ONE.key]
    assert (tmp_path / "precious.safetensors").exists()


def test_folder_that_became_a_link(tmp_path: Path) -> None:
    """Files behind a link that leads out are not the cache's any more, whatever its records say."""
    root = tmp_path / "models"
    directory = ModelDirectory(root)
    place(directory, ONE)
    (root / "checkpoints").rename(tmp_path / "outside")
    (root / "checkpoints").symlink_to(tmp_path / "outside")
    assert books(root).present == {}
    assert (tmp_path / "outside/one.safetensors").exists()
    with pytest.raises(InputRefusedError, match="leads out"):
        directory.make_folder(ONE.key)


def test_file_that_cannot_be_put_in_place(tmp_path: Path) -> None:
    """Where a directory lies in the file's place, the download fails and leaves neither record nor part."""
    directory = ModelDirectory(tmp_path)
    (tmp_path / ONE.key).mkdir(parents=True)
    with pytest.raises(OSError, match=r"directory|Directory") as error:
        place(directory, ONE)
    assert error.value.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)
    assert own(tmp_path, "json") + own(tmp_path, "arriving") == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["one.safetensors"]


def test_record_that_cannot_be_written(tmp_path: Path) -> None:
    """A file whose record can't be put in place does not stay: without a record nothing would ever remove it."""
    directory = ModelDirectory(tmp_path)
    begin(directory, ONE)
    (tmp_path / ".comfyfn" / f"{name_of(ONE.key)}.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        directory.commit(ONE)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_records_removed_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A use that can't be recorded is logged and harms nobody."""
    directory = ModelDirectory(tmp_path)
    place(directory, ONE)
    own(tmp_path, "json")[0].unlink()
    directory.touch(ONE.key)
    assert "not recorded" in caplog.text


def test_changed_record_keeps_its_last_use(tmp_path: Path) -> None:
    """A record that is changed for another reason than a use stays where it is in the order of use."""
    directory = ModelDirectory(tmp_path)
    place(directory, ONE)
    place(directory, TWO)
    directory.rewrite(replace(ONE, pinned=True))
    found = books(tmp_path)
    assert list(found.present) == [ONE.key, TWO.key]
    assert found.present[ONE.key].record.pinned


def test_lock_that_is_held_for_too_long(tmp_path: Path) -> None:
    """Somebody who was stopped in the middle of a decision is waited for only so long."""
    directory = ModelDirectory(tmp_path)
    with ModelDirectory(tmp_path).locked(), ExitStack() as stack, pytest.raises(TimeoutError, match="somebody else"):
        stack.enter_context(ModelDirectory(tmp_path, lock_seconds=0.0).locked())
    with directory.locked():
        pass


def test_writable_directory_is_made(tmp_path: Path) -> None:
    """A directory that is not there yet but can be made counts as writable, and the probe leaves no file in it."""
    assert can_write(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


@pytest.mark.parametrize("where", ["/proc/comfyfn", "file/models"])
def test_directory_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    """The probe tells by trying, so that it is right for root too: procfs takes no files from anybody."""
    (tmp_path / "file").touch()
    assert not can_write(tmp_path / where)


def test_read_only_directory_is_not_touched(tmp_path: Path) -> None:
    """Without the right to write, files are found and nothing is made."""
    directory = ModelDirectory(tmp_path, probe=lambda _directory: False)
    (tmp_path / ONE.key).parent.mkdir()
    (tmp_path / ONE.key).write_bytes(b"volume")
    assert directory.read_only
    assert directory.find(ONE.key) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_free_disk(tmp_path: Path) -> None:
    """The free space of a real disk is some number of bytes."""
    assert free_disk_bytes(tmp_path) > 0

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

from function.models.directory import ModelDirectory, Record, can_write, free_disk_bytes

if TYPE_CHECKING:
    from pathlib import Path

ONE = Record("checkpoints/one.safetensors", "etag-1", 3)
TWO = Record("loras/sub/two.safetensors", "etag-2", 3)


def place(directory: ModelDirectory, record: Record, content: bytes = b"abc") -> None:
    """Put a file in place as a download does."""
    with directory.part(record) as part:
        part.write_bytes(content)
        directory.commit(record, part)


def records(root: Path) -> list[Path]:
    """Paths of all records."""
    return sorted((root / ".comfyfn").glob("*"))


def test_restart_finds_files_in_order_of_use(tmp_path: Path) -> None:
    """A new process finds what earlier ones brought, least recently used first."""
    directory = ModelDirectory(tmp_path)
    place(directory, ONE)
    place(directory, TWO)
    directory.touch(ONE)
    assert ModelDirectory(tmp_path).load() == [TWO, ONE]


def test_use_is_later_after_a_restart(tmp_path: Path) -> None:
    """Uses after a restart count as later than those before it, even if the wall clock was set back."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = records(tmp_path)
    ahead = record.stat().st_mtime_ns + 3600 * 10**9
    os.utime(record, ns=(ahead, ahead))
    directory = ModelDirectory(tmp_path)
    directory.load()
    place(directory, TWO)
    assert ModelDirectory(tmp_path).load() == [ONE, TWO]


def test_download_is_invisible_until_it_is_whole(tmp_path: Path) -> None:
    """A file that is being downloaded lies beside its place under a name that is no model's."""
    directory = ModelDirectory(tmp_path)
    with directory.part(ONE) as part:
        part.write_bytes(b"ab")
        assert part.parent == tmp_path / "checkpoints"
        assert not part.name.endswith((".safetensors", ".sft", ".ckpt", ".pt", ".bin", ".pth"))
        assert directory.find(ONE.key) is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_new_file_changes_its_directory(tmp_path: Path) -> None:
    """Putting a file in place changes the directory's mtime, by which ComfyUI notices new files."""
    directory = ModelDirectory(tmp_path)
    with directory.part(ONE) as part:
        part.write_bytes(b"abc")
        os.utime(part.parent, ns=(1, 1))
        directory.commit(ONE, part)
        assert part.parent.stat().st_mtime_ns > 1


@pytest.mark.parametrize("content", [b"ab", None])
def test_record_without_its_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that has another size than its record says is removed; a record without a file is dropped."""
    place(ModelDirectory(tmp_path), ONE)
    file = tmp_path / ONE.key
    file.unlink() if content is None else file.write_bytes(content)
    assert ModelDirectory(tmp_path).load() == []
    assert not file.exists()
    assert records(tmp_path) == []


def test_unfinished_downloads_are_removed(tmp_path: Path) -> None:
    """What a killed process left of a download is gone after the next start, and only that."""
    directory = ModelDirectory(tmp_path)
    with directory.part(TWO) as part:
        part.write_bytes(b"ab")
        (part.parent / "by-hand.part").touch()
        ModelDirectory(tmp_path).load()
        assert [path.name for path in part.parent.iterdir()] == ["by-hand.part"]


@pytest.mark.parametrize("renamed", [True, False])
def test_killed_while_a_file_is_put_in_place(tmp_path: Path, *, renamed: bool) -> None:
    """A process that died between the renames leaves no file of unknown content behind."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = records(tmp_path)
    new = {"key": ONE.key, "etag": "etag-new", "size_bytes": 3}
    record.with_suffix(".pending").write_text(json.dumps(new))
    if renamed:
        (tmp_path / ONE.key).write_bytes(b"new")
    assert ModelDirectory(tmp_path).load() == []
    assert not (tmp_path / ONE.key).exists()
    assert records(tmp_path) == []


def test_killed_while_the_pending_record_is_written(tmp_path: Path) -> None:
    """A torn pending record proves that the file had not been touched yet: it stays."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = records(tmp_path)
    record.with_suffix(".pending").write_text('{"key": "check')
    assert ModelDirectory(tmp_path).load() == [ONE]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"key": 1, "etag": "e", "size_bytes": 3}',
        b'{"key": "checkpoints/one.safetensors", "etag": "e", "size_bytes": true}',
        b'{"key": "checkpoints/one.safetensors", "etag": "e"}',
        b'{"key": "checkpoints/other.safetensors", "etag": "e", "size_bytes": 3}',
    ],
)
def test_corrupt_record(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A record that can't be read is dropped with a warning; its file stays and nobody else's is touched."""
    place(ModelDirectory(tmp_path), ONE)
    (record,) = records(tmp_path)
    record.write_bytes(content)
    assert ModelDirectory(tmp_path).load() == []
    assert (tmp_path / ONE.key).exists()
    assert records(tmp_path) == []
    assert "is ignored" in caplog.text


def test_record_that_points_outside(tmp_path: Path) -> None:
    """A record never makes the cache remove a file outside the model directory."""
    outside = Record("../precious.safetensors", "e", 3)
    (tmp_path / "precious.safetensors").write_bytes(b"other size")
    root = tmp_path / "models"
    directory = ModelDirectory(root)
    place(directory, ONE)
    stem = directory._record_path(outside.key).stem
    (root / ".comfyfn" / f"{stem}.json").write_text('{"key": "../precious.safetensors", "etag": "e", "size_bytes": 3}')
    assert ModelDirectory(root).load() == [ONE]
    assert (tmp_path / "precious.safetensors").exists()


def test_folder_that_became_a_link(tmp_path: Path) -> None:
    """Files behind a link that leads out are not the cache's any more, whatever its records say."""
    root = tmp_path / "models"
    place(ModelDirectory(root), ONE)
    (root / "checkpoints").rename(tmp_path / "outside")
    (root / "checkpoints").symlink_to(tmp_path / "outside")
    assert ModelDirectory(root).load() == []
    assert (tmp_path / "outside/one.safetensors").exists()


def test_file_that_cannot_be_put_in_place(tmp_path: Path) -> None:
    """Where a directory lies in the file's place, the download fails and leaves neither record nor part."""
    directory = ModelDirectory(tmp_path)
    (tmp_path / ONE.key).mkdir(parents=True)
    with pytest.raises(OSError, match=r"directory|Directory") as error:
        place(directory, ONE)
    assert error.value.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)
    assert records(tmp_path) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["one.safetensors"]


def test_record_that_cannot_be_written(tmp_path: Path) -> None:
    """A file whose record can't be written does not stay: without a record nothing would ever remove it."""
    directory = ModelDirectory(tmp_path)
    directory._record_path(ONE.key).mkdir()
    with pytest.raises(OSError, match="directory"):
        place(directory, ONE)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_records_removed_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A use that can't be recorded is logged and harms nobody."""
    directory = ModelDirectory(tmp_path)
    place(directory, ONE)
    records(tmp_path)[0].unlink()
    directory.touch(ONE)
    assert "not recorded" in caplog.text


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
    """Without the right to write, records are neither read nor repaired."""
    place(ModelDirectory(tmp_path), ONE)
    (tmp_path / ONE.key).write_bytes(b"another size")
    directory = ModelDirectory(tmp_path, probe=lambda _directory: False)
    assert directory.load() == []
    assert directory.find(ONE.key) is not None
    assert len(records(tmp_path)) == 1


def test_free_disk(tmp_path: Path) -> None:
    """The free space of a real disk is some number of bytes."""
    assert free_disk_bytes(tmp_path) > 0

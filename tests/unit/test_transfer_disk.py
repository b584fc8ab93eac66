from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from function.transfer.disk import lengthen, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """An open empty file."""
    number = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def test_a_disk_without_room_is_said_so_at_once(descriptor: int) -> None:
    """A file larger than the free disk is refused before it has a byte."""
    disk = os.fstatvfs(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        lengthen(descriptor, disk.f_bavail * disk.f_frsize + 1024 * MIB)
    assert os.fstat(descriptor).st_size == 0


def test_a_file_gets_its_length(descriptor: int) -> None:
    """A file that fits has its length at once, and no blocks yet."""
    lengthen(descriptor, 8 * MIB)
    status = os.fstat(descriptor)
    assert (status.st_size, status.st_blocks) == (8 * MIB, 0)


def test_writes_at_an_offset(descriptor: int) -> None:
    """A chunk lands where it belongs."""
    write_all(descriptor, memoryview(b"abc"), 5)
    assert os.pread(descriptor, 10, 0) == b"\0\0\0\0\0abc"

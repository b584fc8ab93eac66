from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from function.errors import StorageUnavailableError
from function.models.directory import ModelDirectory, Record
from function.models.ledger import Ledger, Wanted
from function.storage.objects import ObjectChangedError

if TYPE_CHECKING:
    from pathlib import Path

ONE = Record("checkpoints/one.safetensors", "etag-1", 10)
NEW = Record("checkpoints/one.safetensors", "etag-2", 10)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Books of an empty directory with room for 30 bytes."""
    return Ledger(ModelDirectory(tmp_path), capacity_bytes=30, free_disk_bytes=lambda _: 1000, on_evict=lambda: None)


def test_reservation_counts(ledger: Ledger) -> None:
    """Room is taken from the moment a file is reserved, and a second job joins without taking more."""
    first, second = ledger.take([Wanted(ONE)]), ledger.take([Wanted(ONE)])
    assert first
    assert second
    assert (len(first.own), len(second.own), ledger.size_bytes) == (1, 0, 10)


def test_reservation_counts_on_the_disk(tmp_path: Path) -> None:
    """What is reserved but has not arrived yet is not free, although the disk says so."""
    ledger = Ledger(ModelDirectory(tmp_path), capacity_bytes=0, free_disk_bytes=lambda _: 15, on_evict=lambda: None)
    assert ledger.take([Wanted(ONE)])
    assert ledger.take([Wanted(Record("checkpoints/two.safetensors", "e", 10))]) is None


def test_download_that_never_began(ledger: Ledger) -> None:
    """A reservation whose job ends without having begun the download is free again and fails whoever joined."""
    lease = ledger.take([Wanted(ONE)])
    assert lease
    ledger.release(lease.entries[0])
    assert isinstance(lease.entries[0].arrival.exception(), StorageUnavailableError)
    assert (ledger.size_bytes, ledger.entries) == (0, [])


def test_other_content_is_arriving(ledger: Ledger) -> None:
    """A job that wants other content than what arrives under the key has to wait."""
    assert ledger.take([Wanted(ONE)])
    assert ledger.take([Wanted(NEW)]) is None
    assert ledger.take([Wanted(NEW, any_content=True)])


def test_file_that_has_gone(ledger: Ledger) -> None:
    """A job that was to use whatever is there is told when nothing is there."""
    with pytest.raises(ObjectChangedError):
        ledger.take([Wanted(ONE, any_content=True)])


def test_file_of_no_bytes(ledger: Ledger) -> None:
    """An empty file is a file like any other."""
    empty = Record("checkpoints/empty.safetensors", "e", 0)
    assert ledger.take([Wanted(empty)])
    assert [entry.record for entry in ledger.entries] == [empty]

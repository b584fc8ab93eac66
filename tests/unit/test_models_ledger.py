from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from function.models.books import read_books
from function.models.directory import ModelDirectory
from function.models.ledger import Ledger, Place, StartOverError, Wanted
from function.models.records import Record
from function.models.room import Room
from function.storage.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.models.books import Books
    from function.models.ledger import Lease

PLACE = Place(LocalStore("file:///nowhere"), "key")
ONE = Wanted(Record("checkpoints/one.safetensors", "etag-1", 10), PLACE)
TWO = Wanted(Record("checkpoints/two.safetensors", "etag-2", 10), PLACE)
NEW = Wanted(Record("checkpoints/one.safetensors", "etag-new", 10), PLACE)
OTHER_SOURCE = Wanted(Record("checkpoints/one.safetensors", "etag-1", 10, source="https://host/one"), PLACE)


@dataclass
class Job:
    """What somebody does with a directory of their own view, and gives back at the end."""

    root: Path
    capacity_bytes: int = 30
    free_bytes: int = 1000
    boot_id: str = "boot"

    def __post_init__(self) -> None:
        """Look at the directory as a new process."""
        self.directory = ModelDirectory(self.root)
        room = Room(
            self.directory,
            capacity_bytes=self.capacity_bytes,
            free_disk_bytes=lambda _: self.free_bytes,
            on_evict=lambda: None,
        )
        self.ledger = Ledger(self.directory, room, boot_id=self.boot_id)
        self.leases: list[Lease] = []

    def take(self, *wanted: Wanted) -> Lease | None:
        """Take a set."""
        with self.directory.locked():
            lease = self.ledger.take(wanted, read_books(self.directory))
        self.leases += [lease] if lease else []
        return lease

    def bring(self, want: Wanted, content: bytes = b"0123456789") -> None:
        """Take one file and put it in place."""
        lease = self.take(want)
        assert lease
        (load,) = lease.loads.values()
        self.directory.part(load.record).write_bytes(content)
        with self.directory.locked():
            record = self.ledger.arrive(load, "crc")
        lease.records[record.key] = record

    def books(self) -> Books:
        """What is on disk."""
        with self.directory.locked():
            return read_books(self.directory)

    def end(self) -> None:
        """Give everything back."""
        for lease in self.leases:
            self.ledger.release(lease)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[tuple[Job, Job]]:
    """Two jobs of different processes."""
    both = Job(tmp_path), Job(tmp_path)
    yield both
    for job in both:
        job.end()


def test_reservation_counts(jobs: tuple[Job, Job]) -> None:
    """Room is taken from the moment a file is reserved, and another process joins without taking more."""
    first, second = jobs[0].take(ONE), jobs[1].take(ONE)
    assert first
    assert second
    assert (len(first.loads), len(second.loads), list(second.joined)) == (1, 0, [ONE.record.key])
    assert jobs[1].books().size_bytes == 10


def test_reservation_counts_on_the_disk(tmp_path: Path) -> None:
    """What is reserved but has not arrived yet is not free, although the disk says so."""
    job = Job(tmp_path, capacity_bytes=0, free_bytes=15)
    assert job.take(ONE)
    assert job.take(TWO) is None
    job.end()


def test_joined_download_is_given_up(jobs: tuple[Job, Job]) -> None:
    """Who joined a download that never began learns that it has to look again."""
    lease = jobs[0].take(ONE)
    joined = jobs[1].take(ONE)
    assert lease
    assert joined
    assert jobs[1].ledger.arrived(ONE.record) is None
    with jobs[0].directory.locked():
        jobs[0].ledger.give_up(lease.loads[ONE.record.key], useless=False)
    with pytest.raises(StartOverError):
        jobs[1].ledger.arrived(ONE.record)
    assert jobs[1].books().size_bytes == 0


@pytest.mark.parametrize("other", [NEW, OTHER_SOURCE])
def test_other_content_is_arriving(jobs: tuple[Job, Job], other: Wanted) -> None:
    """A job that wants other content than what arrives under the key, or another source's, has to wait."""
    assert jobs[0].take(ONE)
    assert jobs[1].take(other) is None


@pytest.mark.parametrize("other", [NEW, OTHER_SOURCE])
def test_other_content_is_used(jobs: tuple[Job, Job], other: Wanted) -> None:
    """A job that wants other content than what another one uses has to wait until that one ends."""
    jobs[0].bring(ONE)
    assert jobs[1].take(other) is None
    jobs[0].end()
    lease = jobs[1].take(other)
    assert lease
    assert list(lease.loads) == [other.record.key]


def test_old_version_cannot_be_used_while_a_new_one_arrives(jobs: tuple[Job, Job]) -> None:
    """From the moment on at which a file is to be replaced, nobody gets the old one without a decision."""
    jobs[0].bring(ONE)
    jobs[0].end()
    held = jobs[1].ledger.hold(ONE.record.key)
    assert held
    held[1].release()
    assert jobs[0].take(NEW)
    assert jobs[1].ledger.hold(ONE.record.key) is None


def test_old_version_goes_for_somebody_elses_file(jobs: tuple[Job, Job]) -> None:
    """While a new version arrives, the old one's room can be had by any job, although the key is in use."""
    jobs[0].bring(ONE)
    jobs[0].end()
    assert jobs[0].take(NEW)
    assert jobs[1].take(TWO)
    third = Wanted(Record("loras/three.safetensors", "e", 1), PLACE)
    assert jobs[1].take(third)
    assert not jobs[1].directory.path(ONE.record.key).exists()
    assert jobs[1].books().size_bytes == 21


def test_file_that_has_gone(jobs: tuple[Job, Job]) -> None:
    """A job that was to use what is there is told when it isn't there any more."""
    with pytest.raises(StartOverError):
        jobs[0].take(Wanted(ONE.record, None))


def test_file_of_no_bytes(jobs: tuple[Job, Job]) -> None:
    """An empty file is a file like any other."""
    empty = Wanted(Record("checkpoints/empty.safetensors", "e", 0), PLACE)
    jobs[0].bring(empty, b"")
    assert list(jobs[1].books().present) == [empty.record.key]


def test_file_that_is_checked(tmp_path: Path) -> None:
    """After a reboot one job checks a file and others wait for it; nobody gets it without."""
    before, checking, waiting = (Job(tmp_path, boot_id=boot) for boot in ("a", "b", "b"))
    before.bring(ONE)
    before.end()
    assert checking.ledger.hold(ONE.record.key) is None
    first, second = checking.take(ONE), waiting.take(ONE)
    assert first
    assert second
    assert (list(first.loads), list(second.joined)) == ([ONE.record.key], [ONE.record.key])
    with checking.directory.locked():
        checking.ledger.approve(first.loads[ONE.record.key])
    assert waiting.ledger.arrived(second.joined[ONE.record.key])
    checking.end()
    waiting.end()


def test_file_that_is_removed_under_a_job(jobs: tuple[Job, Job]) -> None:
    """A file that somebody removed by hand while a job uses it is given to nobody else."""
    jobs[0].bring(ONE)
    jobs[0].directory.path(ONE.record.key).unlink()
    assert jobs[1].take(ONE) is None


def test_a_set_that_can_not_be_taken_reserves_nothing(jobs: tuple[Job, Job]) -> None:
    """What was taken of it before one file turned out to be gone can be had by anybody."""
    with jobs[0].directory.locked(), pytest.raises(StartOverError):
        jobs[0].ledger.take_unpinned([ONE, Wanted(TWO.record, None)], spare=())
    assert jobs[1].books().size_bytes == 0
    lease = jobs[1].take(ONE)
    assert lease
    assert list(lease.loads) == [ONE.record.key]

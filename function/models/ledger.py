"""The cache's decisions: which files a job holds, brings, or waits for.

Each is taken on fresh books under the directory's lock and needs no more than a few calls of the file system.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from function.models.books import read_books
from function.models.records import with_boot

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from function.credentials import UrlCredential
    from function.models.books import Books
    from function.models.directory import ModelDirectory
    from function.models.locks import FileLock
    from function.models.records import Record
    from function.models.room import Room
    from function.storage.origins import Origin


class StartOverError(Exception):
    """What was found is not there any more, for example because somebody else's download broke off: look again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one file can be fetched.

    Attributes:
        origin: Store or host.
        key: The object's key there; may hold a secret.
        credentials: As in `ModelRef`.
    """

    origin: Origin
    key: str = field(repr=False)
    credentials: tuple[UrlCredential, ...] = field(default=(), repr=False)

    @property
    def object_url(self) -> str:
        """URL of the object, without secrets."""
        return self.origin.object_url(self.key)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a job needs.

    Attributes:
        record: Its key, source, ETag and size.
        place: Where it can be fetched; None if only the file in the cache will do, as storage wasn't or can't be asked.
    """

    record: Record
    place: Place | None


@dataclass(eq=False, slots=True)
class Load:
    """A file that a job brings, or checks because nobody has used it since the machine started.

    Attributes:
        record: What it is.
        place: Where it is fetched; None: it lies in the cache and is checked.
        lock: Held exclusively while that lasts.
        arrived_bytes: How much of it has arrived or was checked.
    """

    record: Record
    place: Place | None
    lock: FileLock
    arrived_bytes: int = 0


@dataclass(slots=True)
class Lease:
    """What one job holds; each by key.

    Attributes:
        records: Its files that are in place.
        pins: Locks on all its files.
        loads: What this job has to bring or check.
        joined: What others bring or check, as long as they do.
        abandoned: The job gave up; its loads stop.
    """

    records: dict[str, Record] = field(default_factory=dict)
    pins: dict[str, FileLock] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    joined: dict[str, Record] = field(default_factory=dict)
    abandoned: bool = False

    def unlock(self) -> None:
        """Let all locks go."""
        for load in self.loads.values():
            load.lock.release()
        for pin in self.pins.values():
            pin.release()


class Ledger:
    """Gives out leases. Everything but `hold`, `release` and `arrived` is called under the directory's lock.

    Args:
        directory: The files.
        room: Where more has to fit.
        boot_id: The machine's current boot.
    """

    def __init__(self, directory: ModelDirectory, room: Room, *, boot_id: str) -> None:
        self._directory = directory
        self._room = room
        self._boot_id = boot_id

    def trusts(self, record: Record) -> bool:
        """Whether the file is known to be whole since the machine started."""
        return self._boot_id in record.boot_ids

    def hold(self, key: str) -> tuple[Record, FileLock] | None:
        """Pin a file in place without the directory's lock; None if that needs a closer look."""
        pin = self._directory.pin(key)
        if pin is None:
            return None
        # Whoever replaces the file writes the arriving record while nobody can have a pin: look for it with the pin.
        record = None if self._directory.is_arriving(key) else self._directory.read(key)
        if record and self.trusts(record) and self._directory.holds(record):
            return record, pin
        pin.release()
        return None

    def release(self, lease: Lease) -> None:
        """Give back what a job holds; its files become evictable, as the most recently used."""
        for key in lease.records.keys() & lease.pins.keys():
            self._directory.touch(key)
        lease.unlock()

    def take(self, wanted: Sequence[Wanted], books: Books, *, spare: Collection[str] = ()) -> Lease | None:
        """Pin all wanted files and reserve room for those that have to come; all or nothing.

        Least recently used files are evicted here, before the first byte of a new one arrives.

        Args:
            wanted: One for each key.
            books: As they are.
            spare: Keys of files that are not to be evicted either.

        Returns:
            None if a job, perhaps of another process, has to release something first.

        Raises:
            StartOverError: A file that was to be used as it is has gone since.
            InputRefusedError: A name leads out of the model directory.
        """
        lease = Lease()
        with ExitStack() as undo:
            undo.callback(lease.unlock)
            if not all(self._place(want, books, lease) for want in wanted):
                return None
            fetches = [load.record for load in lease.loads.values() if load.place]
            if not self._room.make(books, fetches, spare={*spare, *(want.record.key for want in wanted)}):
                return None
            for record in fetches:
                self._reserve(record, books, lease)
            undo.pop_all()
        for key in lease.records:
            self._directory.touch(key)
        return lease

    def take_unpinned(self, wanted: Sequence[Wanted], *, spare: Collection[str]) -> Lease:
        """Reserve room for each of these files that has to come and fits; nothing is pinned.

        Args:
            wanted: One for each key.
            spare: Keys of files that are not to be evicted for them.

        Raises:
            As `take`; then nothing is reserved.
        """
        whole = Lease()
        with ExitStack() as undo:
            undo.callback(whole.unlock)
            for want in wanted:
                lease = self.take([want], read_books(self._directory), spare=spare)
                if lease:
                    whole.loads |= {key: lease.loads.pop(key) for key, load in [*lease.loads.items()] if load.place}
                    lease.unlock()
            undo.pop_all()
        return whole

    def arrive(self, load: Load, crc64nvme: str) -> Record:
        """Put a finished download in place; its record."""
        old = self._directory.read(load.record.key)
        record = replace(
            load.record,
            crc64nvme=crc64nvme,
            boot_ids=(self._boot_id,),
            pinned=old.pinned if old else load.record.pinned,
        )
        self._directory.commit(record)
        load.lock.release()
        return record

    def approve(self, load: Load) -> Record:
        """Note that a file is whole since the machine started; its record."""
        record = self._directory.read(load.record.key) or load.record
        record = replace(record, boot_ids=with_boot(record.boot_ids, self._boot_id))
        self._directory.rewrite(record)
        load.lock.release()
        return record

    def reject(self, load: Load) -> None:
        """Remove a file that is not what its record says; jobs that pin it only wait for the check."""
        self._directory.remove(load.record)
        load.lock.release()

    def give_up(self, load: Load, *, useless: bool) -> None:
        """End a load that did not succeed; what has arrived stays for the next one unless it is of no use."""
        if load.place and (useless or not self._directory.has_part(load.record)):
            self._directory.discard(load.record)
        load.lock.release()

    def arrived(self, record: Record) -> Record | None:
        """The file that somebody else brings or checks, once it is in place. Needs no lock but the pin on it.

        Raises:
            StartOverError: Nobody brings it any more.
        """
        if self._directory.is_written(record.key):
            return None
        found = None if self._directory.is_arriving(record.key) else self._directory.read(record.key)
        if found is None or not found.is_same_content(record) or not self.trusts(found):
            raise StartOverError(record.key)
        return found

    def _place(self, want: Wanted, books: Books, lease: Lease) -> bool:
        """Find out how the job gets one file and lock what that takes; False if it has to wait."""
        key = want.record.key
        arriving, present = books.arriving.get(key), books.present.get(key)
        if arriving:
            lease.pins[key] = self._directory.pin_under_lock(key)
            lease.joined[key] = arriving
            return want.record.is_same_content(arriving)
        if present and want.record.is_same_content(present.record):
            return self._use(present.record, lease)
        if want.place is None:
            raise StartOverError(key)
        return self._fetch(want, present.record if present else None, lease)

    def _use(self, record: Record, lease: Lease) -> bool:
        if not self._directory.holds(record):
            return False  # somebody removed it by hand while a job uses it
        key = record.key
        lease.pins[key] = self._directory.pin_under_lock(key)
        if self.trusts(record):
            lease.records[key] = record
        elif lock := self._directory.write_lock(key):
            lease.loads[key] = Load(record, None, lock)
        else:
            lease.joined[key] = record
        return True

    def _fetch(self, want: Wanted, old: Record | None, lease: Lease) -> bool:
        key = want.record.key
        self._directory.make_folder(key)
        pin = self._directory.seize(key) if old else self._directory.pin_under_lock(key)
        if pin is None:
            return False  # a job uses the old version
        lease.pins[key] = pin
        lock = self._directory.write_lock(key)
        if lock is None:
            return False
        record = replace(want.record, pinned=old.pinned) if old else want.record
        lease.loads[key] = Load(record, want.place, lock)
        return True

    def _reserve(self, record: Record, books: Books, lease: Lease) -> None:
        left = books.left.get(record.key)
        if left and not left.is_same_content(record):
            self._directory.discard(left)
        self._directory.reserve(record)
        lease.pins[record.key].share()

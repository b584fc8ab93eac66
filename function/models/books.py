"""The books of a model directory: read from the disk under its lock for every decision, and repaired on the way."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from function.models.directory import PART_SUFFIX
from function.models.locks import remove_lock
from function.models.records import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from function.models.directory import ModelDirectory
    from function.models.records import Record

_log = logging.getLogger(__name__)

_LEFT_SECONDS = 24 * 3600.0  # a download that nobody goes on with for a day is given up


@dataclass(frozen=True, slots=True)
class Present:
    """A file in place.

    Attributes:
        record: What it is.
        last_use_ns: When a job used it last, as nanoseconds of the wall clock.
    """

    record: Record
    last_use_ns: int


@dataclass(slots=True)
class Books:
    """What the cache has in a directory at one moment; each by key.

    Attributes:
        present: Files in place, least recently used first.
        arriving: Files that somebody alive is bringing.
        left: Files that nobody brings any more, and of which parts are there; oldest first.
    """

    present: dict[str, Present] = field(default_factory=dict)
    arriving: dict[str, Record] = field(default_factory=dict)
    left: dict[str, Record] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, of the room reserved for arriving ones, and of what downloads left, counted in full."""
        present = sum(item.record.size_bytes for item in self.present.values())
        return present + sum(record.size_bytes for record in (*self.arriving.values(), *self.left.values()))


def read_books(directory: ModelDirectory) -> Books:
    """Read the books under the directory's lock.

    What a dead process left half done is finished or removed: a complete arrival is put in place, a part that nobody
    went on with for a day is dropped, and so is a record whose file is gone or was changed by somebody else.
    """
    paths = list(directory.own.iterdir())
    for path in _with_suffix(paths, ".tmp"):
        path.unlink()
    books = Books()
    for path in _with_suffix(paths, ".arriving"):
        _read_arrival(directory, path, books)
    inside = cache(directory.is_inside)
    present = filter(None, (_read_present(directory, path, inside) for path in directory.own.glob("*.json")))
    books.present = {item.record.key: item for item in sorted(present, key=lambda item: item.last_use_ns)}
    books.left = dict(sorted(books.left.items(), key=lambda item: _changed_at(directory, item[1])))
    for item in books.present.values():
        directory.see_use(item.last_use_ns)
    _remove_locks(paths, {name_of(key) for key in (*books.present, *books.arriving, *books.left)})
    return books


def remove_strays(directory: ModelDirectory) -> None:
    """Remove parts that no record speaks of; under the directory's lock, once at the start: it walks the directory."""
    records = filter(None, (directory.read_record(path) for path in directory.own.glob("*.arriving")))
    known = {directory.part(record).name for record in records}
    for folder, _, names in os.walk(directory.root):
        for name in names:
            stem, suffix, _journal = name.partition(PART_SUFFIX)
            if suffix and stem + suffix not in known:
                Path(folder, name).unlink(missing_ok=True)


def _read_arrival(directory: ModelDirectory, path: Path, books: Books) -> None:
    record = directory.read_record(path)
    if record is None:
        path.unlink(missing_ok=True)
    elif directory.is_written(record.key):
        books.arriving[record.key] = record
    elif record.complete:
        _repaired(directory.finish, record)
    elif time.time() - _changed_at(directory, record) < _LEFT_SECONDS or not _repaired(directory.discard, record):
        books.left[record.key] = record


def _repaired(repair: Callable[[Record], None], record: Record) -> bool:
    """Whether that worked; if not, the file still takes its room and is looked at again next time."""
    try:
        repair(record)
    except OSError as error:
        _log.warning("model cache: %s can't be put in order: %s", record.key, error.strerror)
        return False
    return True


def _changed_at(directory: ModelDirectory, record: Record) -> float:
    """When the last bytes of a part came; 0.0 if there are none."""
    try:
        return directory.part(record).stat().st_mtime
    except OSError:
        return 0.0


def _read_present(directory: ModelDirectory, path: Path, is_inside: Callable[[Path], bool]) -> Present | None:
    record = directory.read_record(path)
    if record is None or not is_inside(directory.path(record.key).parent):
        _log.warning("model cache: the record %s is dropped, its file is left alone", path)
        path.unlink(missing_ok=True)
        return None
    if not directory.holds(record) and _dropped(directory, record):
        return None
    return Present(record, path.stat().st_mtime_ns)


def _dropped(directory: ModelDirectory, record: Record) -> bool:
    lock = directory.seize(record.key)
    if lock is None:
        return False  # a job uses it: the room may still be taken
    with lock:
        _log.warning("model cache: %s was changed by somebody else; it is dropped", record.key)
        return _repaired(directory.remove, record)


def _with_suffix(paths: Iterable[Path], suffix: str) -> Iterator[Path]:
    return (path for path in paths if path.suffix == suffix)


def _remove_locks(paths: Iterable[Path], known: Container[str]) -> None:
    """Remove lock files of keys that have no record any more and that nobody holds."""
    for path in paths:
        if path.suffix in {".pin", ".write"} and path.stem not in known:
            remove_lock(path)

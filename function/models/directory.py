"""The model directory: what is on disk, under its locks, is the truth; whatever a process remembers is only a view.

    MODEL_DIR/<folder>/<filename>                 a model, where ComfyUI looks
    MODEL_DIR/<folder>/.<name>.<content>.comfyfn-part   a download, its journal beside it; no model suffix, so ComfyUI
                                                  never lists it; named after the content, so that any process can go
                                                  on with it
    MODEL_DIR/.comfyfn/<name>.json                record of a file that the cache brought; its mtime is the last use
    MODEL_DIR/.comfyfn/<name>.arriving            record of a file that is being brought, or whose download was left
    MODEL_DIR/.comfyfn/<name>.pin                 locked shared by each job that uses the file or waits for it
    MODEL_DIR/.comfyfn/<name>.write               locked exclusively by the job that brings or checks the file
    MODEL_DIR/.comfyfn/lock                       locked exclusively for every decision; held for milliseconds
    MODEL_DIR/.comfyfn/queue/<number>             locked by a job that waits for room

Any number of threads, processes and containers share a directory. All locks are flocks: the kernel lets them go when
their holder ends, so a process that is killed leaves no lock behind, only files that whoever comes next understands:

- A file without a record was brought by the image or a mounted volume: it is used, never replaced, never removed.
- An arriving record whose `.write` is locked is room reserved. Not locked, it is what a dead or failed download left:
  it counts, the next download of the same content goes on with it, and it is the first to be evicted.
- A file is put in place in four steps: the arriving record is marked complete (it gets the CRC), the old record is
  removed, the part renamed to the file, the arriving record renamed to the record. Whoever finds a complete arriving
  record that nobody holds takes the steps that are missing.

An NFS mount has to show other machines' changes at once: mount it with `actimeo=0`.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.errors import InputRefusedError
from function.models.locks import FileLock, is_locked, lock_within, read_note, try_lock
from function.models.records import name_of, parse_record, part_name_of, to_json
from function.transfer.fetching import journal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from function.models.records import Record

_log = logging.getLogger(__name__)

_OWN = ".comfyfn"
PART_SUFFIX = ".comfyfn-part"
"""How the name of a file ends that is being downloaded."""

_LOCK_SECONDS = 30.0  # a decision takes milliseconds; who holds the lock for longer was stopped
_BLOCK_BYTES = 512  # the unit of st_blocks
_VISIBLE_NS = 1_000_000  # ComfyUI compares mtimes as floats, which don't tell nanoseconds apart


def can_write(directory: Path) -> bool:
    """Whether files can be made in a directory, found out by making one; the directory is made if it is not there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def free_disk_bytes(directory: Path) -> int:
    """Bytes that this process may still write to the directory's file system."""
    return shutil.disk_usage(directory).free


def show_change(folder: Path, before_ns: int) -> None:
    """Change a folder's mtime if that is still what it was: ComfyUI lists a folder anew when it changes.

    Some network and object mounts don't change it when a file appears.
    """
    if folder.stat().st_mtime_ns == before_ns:
        later_ns = max(time.time_ns(), before_ns + _VISIBLE_NS)
        os.utime(folder, ns=(later_ns, later_ns))


class ModelDirectory:
    """Files, records and locks of one MODEL_DIR; methods raise OSError as the disk does.

    What changes records or takes an exclusive `pin` is called under `locked`.

    Args:
        root: MODEL_DIR.
        probe: Whether a directory can be written to; if not, nothing here is ever written or locked.
        lock_seconds: How long to wait for somebody else's decision.
    """

    def __init__(
        self, root: Path, *, probe: Callable[[Path], bool] = can_write, lock_seconds: float = _LOCK_SECONDS
    ) -> None:
        self.root = root
        self.own = root / _OWN
        self.read_only = not probe(self.own)
        self._lock_seconds = lock_seconds
        self._threads = threading.Lock()
        self._last_use_ns = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Decide alone among all threads and processes; not reentrant.

        Raises:
            TimeoutError: Somebody has held the lock for too long.
        """
        # Threads of one process need not poll for each other.
        with self._threads, lock_within(self.own / "lock", exclusive=True, seconds=self._lock_seconds):
            yield

    # Locks of one file

    def pin(self, key: str) -> FileLock | None:
        """Pin a file without the directory's lock; None if that needs a closer look."""
        return try_lock(self._own_path(key, "pin"), exclusive=False, create=False)

    def pin_under_lock(self, key: str) -> FileLock:
        """Pin a file; nobody can be about to evict it."""
        return lock_within(self._own_path(key, "pin"), exclusive=False, seconds=self._lock_seconds)

    def seize(self, key: str) -> FileLock | None:
        """Have a file that no job uses or waits for, so that none can; None if one does."""
        return try_lock(self._own_path(key, "pin"), exclusive=True)

    def write_lock(self, key: str) -> FileLock | None:
        """Become the one who brings or checks a file; None if somebody else is.

        Others look for moments whether the lock is held, so a holder is one who still has it after a while.
        """
        if self.is_written(key):
            return None
        return lock_within(self._own_path(key, "write"), exclusive=True, seconds=self._lock_seconds)

    def is_written(self, key: str) -> bool:
        """Whether somebody alive brings or checks this file."""
        return is_locked(self._own_path(key, "write"))

    def arrived_bytes(self, key: str) -> int:
        """How far the one who writes a file says to have come."""
        return read_note(self._own_path(key, "write"))

    # Files

    def path(self, key: str) -> Path:
        """Where the file of a key lies."""
        return self.root / key

    def find(self, key: str) -> os.stat_result | None:
        """Status of the file of a key, through links; None if there is no such file."""
        try:
            status = self.path(key).stat()
        except OSError:
            return None
        return status if stat.S_ISREG(status.st_mode) else None

    def holds(self, record: Record) -> bool:
        """Whether the file of a record is there with its length."""
        status = self.find(record.key)
        return status is not None and status.st_size == record.size_bytes

    def part(self, record: Record) -> Path:
        """Where a download is collected: beside the place where the file will appear, on the same file system."""
        return self.path(record.key).parent / f"{part_name_of(record)}{PART_SUFFIX}"

    def allocated_bytes(self, record: Record) -> int:
        """What a part takes on the disk already, not more than the file will."""
        try:
            return min(record.size_bytes, self.part(record).stat().st_blocks * _BLOCK_BYTES)
        except FileNotFoundError:
            return 0

    def has_part(self, record: Record) -> bool:
        """Whether anything of a download has arrived."""
        try:
            return self.part(record).stat().st_size > 0
        except FileNotFoundError:
            return False

    def make_folder(self, key: str) -> None:
        """Make the directory in which a file is to appear.

        Raises:
            InputRefusedError: A directory on the way is a link that leads out of MODEL_DIR.
        """
        folder = self.path(key).parent
        if not self.is_inside(folder):
            raise InputRefusedError(f"model {key}: {folder} is a link that leads out of the model directory")
        folder.mkdir(parents=True, exist_ok=True)

    def is_inside(self, folder: Path) -> bool:
        """Whether no link on the way to a folder leads out of MODEL_DIR."""
        return folder.resolve().is_relative_to(self.root.resolve())

    # Records

    def read(self, key: str) -> Record | None:
        """Record of a file in place."""
        return self.read_record(self._own_path(key, "json"))

    def is_arriving(self, key: str) -> bool:
        """Whether there is an arriving record, even a dead download's."""
        return self._own_path(key, "arriving").exists()

    def read_record(self, path: Path) -> Record | None:
        """What a record says; None if there is none, or none that can be believed."""
        try:
            return parse_record(path.read_bytes(), name=path.stem)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, InputRefusedError) as error:
            _log.warning("model cache: record %s is ignored: %s", path, error)
            return None

    def rewrite(self, record: Record) -> None:
        """Change the record of a file in place; its last use stays."""
        path = self._own_path(record.key, "json")
        last_use_ns = path.stat().st_mtime_ns
        self._write(path, record, mtime_ns=last_use_ns)

    def reserve(self, record: Record) -> None:
        """Write the record of a file that is about to be brought."""
        self._write(self._own_path(record.key, "arriving"), record)

    def commit(self, record: Record) -> None:
        """Make a finished download appear, whole, in place of what was there; its last use is now."""
        self.reserve(record)
        self.finish(record)
        self.touch(record.key)

    def finish(self, record: Record) -> None:
        """Take those steps of putting a complete arrival in place that are still missing.

        On an error there is neither file nor reservation afterwards: nothing would tell what the file is.
        """
        try:
            self._own_path(record.key, "json").unlink(missing_ok=True)
            self._appear(record)
            self._own_path(record.key, "arriving").replace(self._own_path(record.key, "json"))
        except OSError:
            self.discard(record)
            self.remove(record)
            raise

    def discard(self, record: Record) -> None:
        """Remove what a download left, its record last."""
        part = self.part(record)
        part.unlink(missing_ok=True)
        journal_of(part).unlink(missing_ok=True)
        self._own_path(record.key, "arriving").unlink(missing_ok=True)

    def remove(self, record: Record) -> None:
        """Remove a file that the cache brought, then its record: a file never outlives its record."""
        path = self.path(record.key)
        if not path.is_dir():
            path.unlink(missing_ok=True)
        self._own_path(record.key, "json").unlink(missing_ok=True)

    def touch(self, key: str) -> None:
        """Note that a file is used now."""
        self.see_use(time.time_ns() - 1)
        self._last_use_ns += 1
        try:
            os.utime(self._own_path(key, "json"), ns=(self._last_use_ns, self._last_use_ns))
        except OSError as error:
            _log.warning("model cache: the last use of %s is not recorded: %s", key, error.strerror)

    def see_use(self, last_use_ns: int) -> None:
        """Later uses count as later than this one, even if the wall clock is set back."""
        self._last_use_ns = max(self._last_use_ns, last_use_ns)

    def _appear(self, record: Record) -> None:
        part, path = self.part(record), self.path(record.key)
        if not part.exists():
            return  # whoever died was further than that
        journal_of(part).unlink(missing_ok=True)
        before_ns = path.parent.stat().st_mtime_ns
        part.replace(path)
        show_change(path.parent, before_ns)

    def _write(self, path: Path, record: Record, *, mtime_ns: int | None = None) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(to_json(record))
        if mtime_ns is not None:
            os.utime(temporary, ns=(mtime_ns, mtime_ns))
        temporary.replace(path)

    def _own_path(self, key: str, suffix: str) -> Path:
        return self.own / f"{name_of(key)}.{suffix}"

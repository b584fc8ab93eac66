"""The model directory: what is on disk is the truth.

    MODEL_DIR/<folder>/<filename>              a model, where ComfyUI looks
    MODEL_DIR/<folder>/.<hash>.comfyfn-part    a download; no model suffix, so ComfyUI never lists it
    MODEL_DIR/.comfyfn/<hash>.json             record of a file that the cache brought; its mtime is the last use
    MODEL_DIR/.comfyfn/<hash>.pending          the record of a file that is being put in place

A file without a record was brought by the image or a mounted volume: it is used, never replaced, never removed. One
process owns a directory that it can write to; a directory that it can't write to may be shared.

A file is put in place in three steps: pending record, rename of the file, rename of the record. Whoever dies in
between leaves a pending record, and the next start removes that one file: whether it is the old or the new content
can't be told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from function.errors import InputRefusedError
from function.workflow import check_relative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

_OWN = ".comfyfn"
_PART_SUFFIX = ".comfyfn-part"


@dataclass(frozen=True, slots=True)
class Record:
    """A file that the cache brought.

    Attributes:
        key: Where it lies below the directory and in storage: `<folder>/<filename>`.
        etag: Identity of its content, as storage gave it.
        size_bytes: Length of the file.
    """

    key: str
    etag: str
    size_bytes: int

    @property
    def filename(self) -> str:
        """Its name inside its folder."""
        return self.key.partition("/")[2]


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


class ModelDirectory:
    """The files of MODEL_DIR and the records of those that the cache brought.

    Not thread-safe: the cache calls it under its lock, apart from `part`. Methods raise OSError as the disk
    does.

    Args:
        root: MODEL_DIR.
        probe: Whether a directory can be written to; if not, nothing here is ever written.
    """

    def __init__(self, root: Path, *, probe: Callable[[Path], bool] = can_write) -> None:
        self.root = root
        self._own = root / _OWN
        self.read_only = not probe(self._own)
        self._last_use_ns = 0

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

    def load(self) -> list[Record]:
        """What the cache brought in earlier processes, least recently used first; what they left half done is removed.

        A record whose file is gone or has another size is dropped, the file too. Nothing in a record is believed
        before it is checked.
        """
        if self.read_only:
            return []
        self._remove_parts()
        self._remove_pending()
        found: list[tuple[int, Record]] = []
        for path in self._own.glob("*.json"):
            record = self._read(path)
            if record and self._holds(record):
                found.append((path.stat().st_mtime_ns, record))
            elif record:
                self.remove(record)
            else:
                path.unlink()
        found.sort(key=lambda item: item[0])
        self._last_use_ns = found[-1][0] if found else 0
        return [record for _, record in found]

    @contextmanager
    def part(self, record: Record) -> Iterator[Path]:
        """Path for a download, beside the place where the file will appear, hence on the same file system.

        What lies there when the context closes is removed.

        Raises:
            InputRefusedError: A directory on the way is a link that leads out of MODEL_DIR.
        """
        folder = self.path(record.key).parent
        self._check_inside(folder, record.key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".{_digest(record.key)}{_PART_SUFFIX}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def commit(self, record: Record, part: Path) -> None:
        """Make a finished download appear, whole, in place of what was there; its last use is now.

        On an error there is no file afterwards.
        """
        pending = self._record_path(record.key).with_suffix(".pending")
        try:
            pending.write_text(json.dumps(asdict(record)))
            part.replace(self.path(record.key))
            pending.replace(self._record_path(record.key))
        except OSError:
            self.remove(record)
            pending.unlink(missing_ok=True)
            raise
        self.touch(record)

    def touch(self, record: Record) -> None:
        """Note that a file is used now, so that the order of use survives a restart."""
        self._last_use_ns = max(self._last_use_ns + 1, time.time_ns())
        try:
            os.utime(self._record_path(record.key), ns=(self._last_use_ns, self._last_use_ns))
        except OSError as error:
            _log.warning("model cache: the last use of %s is not recorded: %s", record.key, error.strerror)

    def remove(self, record: Record) -> None:
        """Remove a file that the cache brought, then its record: a file never outlives its record."""
        path = self.path(record.key)
        if not path.is_dir():
            path.unlink(missing_ok=True)
        self._record_path(record.key).unlink(missing_ok=True)

    def _holds(self, record: Record) -> bool:
        status = self.find(record.key)
        return status is not None and status.st_size == record.size_bytes

    def _record_path(self, key: str) -> Path:
        return self._own / f"{_digest(key)}.json"

    def _read(self, path: Path) -> Record | None:
        try:
            return self._parse(path)
        except (OSError, ValueError, TypeError, KeyError, InputRefusedError) as error:
            _log.warning("model cache: record %s is ignored: %s", path, error)
            return None

    def _parse(self, path: Path) -> Record:
        members = json.loads(path.read_bytes())
        key, etag, size_bytes = (members[name] for name in ("key", "etag", "size_bytes"))
        if not (isinstance(key, str) and isinstance(etag, str) and type(size_bytes) is int):
            raise ValueError("a member has the wrong type")
        record = Record(key, etag, size_bytes)
        if _digest(record.key) != path.stem:
            raise ValueError("it is not named after its key")
        check_relative(record.key, what="key")
        self._check_inside(self.path(record.key).parent, record.key)
        return record

    def _check_inside(self, folder: Path, key: str) -> None:
        if not folder.resolve().is_relative_to(self.root.resolve()):
            raise InputRefusedError(f"model {key}: {folder} is a link that leads out of the model directory")

    def _remove_pending(self) -> None:
        for path in self._own.glob("*.pending"):
            record = self._read(path)
            if record:
                self.remove(record)
            path.unlink()

    def _remove_parts(self) -> None:
        for path in self._walk():
            if path.name.endswith(_PART_SUFFIX):
                path.unlink(missing_ok=True)

    def _walk(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.root):
            yield from (Path(folder, name) for name in names)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40]

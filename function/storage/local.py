"""`file:///dir`: a directory as a store, so that the function runs with no storage server.

The ETag is the sha256 of the content. Writes appear whole or not at all: a file is written in `.comfyfn/tmp`, then
linked (create) or renamed (put, upload) into its place while the writer holds the lock in `.comfyfn`. The winner of
concurrent creates is decided by `os.link`; the lock only keeps the choice of the place (see `places`) from changing in
between. Readers take no lock, so a read-only directory can be read. After a power failure, unlike after the death of
a process, a file written last may be incomplete: nothing is synced to the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias
from urllib.parse import quote

from function.errors import InputRefusedError, StorageUnavailableError
from function.storage.objects import (
    Listing,
    ObjectChangedError,
    ObjectInfo,
    ObjectMissingError,
    SizedReader,
    check_key,
    media_type_of,
)
from function.storage.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from io import BufferedReader

    from function.storage.objects import OnBytes, RangeStream, Readable

_CHUNK_BYTES = 1024 * 1024
_SETTLED_SECONDS = 2.0
_LEFTOVER_SECONDS = 24 * 3600.0
_REMEDIES = {
    errno.ENOSPC: "free disk space or choose another directory",
    errno.EDQUOT: "free disk space or choose another directory",
    errno.EROFS: "the directory is mounted read-only",
    errno.EACCES: "give this process's user access to the directory",
    errno.EPERM: "give this process's user access to the directory",
    errno.EXDEV: "the store must lie on one file system",
}

_Version: TypeAlias = tuple[int, int, int, int, int]


class LocalStore:
    """The objects of one directory, which is made by the first write.

    Args:
        url: `file://` and an absolute path, taken literally (no percent-decoding).
        clock: Seconds since the epoch, as the file system counts them.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.url = url
        self._clock = clock
        self._places = Places(Path(os.path.realpath(url.removeprefix("file://"))))
        self._etags = _Etags(clock)
        self._swept = False

    def object_url(self, key: str) -> str:
        """`file:///dir/key`."""
        return f"{self.url.rstrip('/')}/{check_key(key)}"

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; reads it whole when its ETag is not known yet (see `_Etags`)."""
        with self._translated(), self._open(key) as file:
            return _describe(key, os.fstat(file.fileno()), self._etags.of(file))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read one small object whole."""
        with self._translated(), self._open(key) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise StorageUnavailableError(f"{self.object_url(key)}: larger than {max_bytes} bytes")
        return data

    def get_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """Read part of the content with this ETag."""
        with self._translated(), self._open(key) as file, self._unchanged(key, file, etag):
            file.seek(start)
            return file.read(length)

    @contextmanager
    def open_range(self, key: str, start: int, length: int, *, etag: str) -> Iterator[RangeStream]:
        """The file from `start` on: the caller reads no further than `length`."""
        del length
        with self._open(key) as file, self._unchanged(key, file, etag):
            file.seek(start)
            yield _Stream(file, self._translated)

    def download(self, key: str, path: Path, *, etag: str, on_bytes: OnBytes | None = None) -> None:
        """Copy the content with this ETag to `path`."""
        with path.open("wb") as target, self._open(key) as source, self._unchanged(key, source, etag):
            for chunk in self._chunks(source):
                target.write(chunk)
                if on_bytes:
                    on_bytes(len(chunk))

    def put(self, key: str, data: bytes, *, media_type: str = "") -> ObjectInfo:
        """Write one small object; the media type follows from the key's extension, not from `media_type`."""
        del media_type
        return self._write(key, iter([data]))

    def create(self, key: str, data: bytes, *, media_type: str = "") -> bool:
        """Write one small object unless the key exists."""
        del media_type
        check_key(key)
        with self._translated():
            if self._places.find(key):
                return False
            with self._staged(iter([data])) as (staged, _etag), self._committing():
                return self._link(key, staged)

    def upload(self, key: str, source: Readable, *, size_bytes: int, media_type: str = "") -> ObjectInfo:
        """Write one object of any size; the media type follows from the key's extension."""
        del media_type
        reader = SizedReader(source, size_bytes=size_bytes)
        return self._write(key, iter(lambda: reader.read(_CHUNK_BYTES), b""))

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects in the order of their keys, with empty ETags: a listing reads no content."""
        with self._translated():
            for key, path in self._places.walk(prefix, start_after):
                try:
                    yield _describe(key, path.lstat(), etag="")
                except FileNotFoundError:
                    continue  # deleted since its directory was read

    def list_page(self, prefix: str = "", *, start_after: str = "", limit: int = 1000) -> Listing:
        """The first of them, with the file system's time; read from the whole listing."""
        taken_at = datetime.fromtimestamp(self._clock(), tz=UTC)
        found = tuple(islice(self.list_objects(prefix, start_after=start_after), limit + 1))
        return Listing(found[:limit], taken_at, complete=len(found) <= limit)

    def delete(self, key: str) -> None:
        """Remove one object and the directories that it leaves empty."""
        with self._translated():
            if self._places.find(check_key(key)) is None:
                return
            with self._committing():
                while path := self._places.find(key):
                    path.unlink(missing_ok=True)
                    self._prune(path.parent)

    def presign(self, key: str, *, expires_seconds: int) -> str:
        """The path under which the function serves the object; it doesn't expire."""
        del expires_seconds
        return f"/{quote(check_key(key))}"

    @contextmanager
    def _open(self, key: str) -> Iterator[BufferedReader]:
        with self._translated():
            path = self._places.find(check_key(key))
            if path is None:
                raise ObjectMissingError(self.object_url(key))
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                raise ObjectMissingError(self.object_url(key)) from None
        with os.fdopen(descriptor, "rb") as file:
            yield file

    @contextmanager
    def _unchanged(self, key: str, file: BufferedReader, etag: str) -> Iterator[None]:
        """Make sure that what is read inside is the content with this ETag."""
        version = _version_of(file)
        with self._translated():
            current = self._etags.of(file)
        if current != etag:
            raise ObjectChangedError(self.object_url(key))
        yield
        if _version_of(file) != version:
            raise ObjectChangedError(self.object_url(key))

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        with self._translated():
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _write(self, key: str, chunks: Iterator[bytes]) -> ObjectInfo:
        check_key(key)
        with self._translated(), self._staged(chunks) as (staged, etag), self._committing():
            target = self._places.target(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            info = _describe(key, staged.stat(), etag)
            staged.replace(target)
            return info

    def _link(self, key: str, staged: Path) -> bool:
        if self._places.find(key):
            return False
        target = self._places.target(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(staged, target)
        except FileExistsError:  # by someone who takes no lock: a file dropped by hand
            return False
        return True

    @contextmanager
    def _staged(self, chunks: Iterator[bytes]) -> Iterator[tuple[Path, str]]:
        """A finished file outside every listing, and its ETag; removed at the end unless it was moved."""
        directory = self._places.own / "tmp"
        directory.mkdir(parents=True, exist_ok=True)
        self._sweep(directory)
        path = directory / uuid.uuid4().hex
        digest = hashlib.sha256()
        try:
            with path.open("xb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            yield path, digest.hexdigest()
        finally:
            path.unlink(missing_ok=True)

    def _sweep(self, directory: Path) -> None:
        """Once per process, remove what killed processes left behind."""
        if self._swept:
            return
        self._swept = True
        for path in directory.iterdir():
            try:
                if self._clock() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue  # its writer has finished

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Hold the writers' lock, among threads and processes; closing the file releases it."""
        with (self._places.own / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prune(self, directory: Path) -> None:
        while directory not in (self._places.root, self._places.own):
            try:
                directory.rmdir()
            except OSError:
                return  # not empty, or not ours to remove
            directory = directory.parent

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one place where errors of the file system become ours."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InputRefusedError(f"{self.url}: a name in the key is too long for the file system") from error
            reason = os.strerror(error.errno or 0)
            remedy = _REMEDIES.get(error.errno or 0, "check the directory and its disk")
            raise StorageUnavailableError(f"{self.url}: {reason}: {remedy}") from error


@dataclass(frozen=True, slots=True)
class _Stream:
    """Translates the errors of reading only: what the caller raises meanwhile is not ours."""

    file: BufferedReader
    translated: Callable[[], AbstractContextManager[None]]

    def readinto(self, buffer: memoryview, /) -> int:
        with self.translated():
            return self.file.readinto(buffer)

    def abort(self) -> None:
        """Nobody waits long for a disk."""


class _Etags:
    """sha256 of files, computed once per version of a file.

    A version is what changes when the content is replaced or written to: device, inode, size, mtime and ctime (which
    nobody can set back). Two writes within one tick of the file system's clock look alike, so a digest is remembered
    only when the file had been left alone for two seconds before it was read; until then it is computed again.
    """

    _MAX_ENTRIES = 4096

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._digests: dict[_Version, str] = {}

    def of(self, file: BufferedReader) -> str:
        """ETag of an open file, which is left at its beginning."""
        version = _version_of(file)
        digest = self._digests.get(version)
        if digest is None:
            settled = self._clock() - max(version[-2:]) / 1e9 > _SETTLED_SECONDS
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if settled and version == _version_of(file):
                self._remember(version, digest)
        return digest

    def _remember(self, version: _Version, digest: str) -> None:
        with self._lock:
            while len(self._digests) >= self._MAX_ENTRIES:
                del self._digests[next(iter(self._digests))]
            self._digests[version] = digest


def _version_of(file: BinaryIO) -> _Version:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _describe(key: str, status: os.stat_result, etag: str) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size_bytes=status.st_size,
        etag=etag,
        modified_at=datetime.fromtimestamp(status.st_mtime, tz=UTC),
        media_type=media_type_of(key) if etag else "",
    )

"""Locks between processes: flock, which the kernel lets go when its holder ends, however it ends.

A flock belongs to an open file, not to a process: two jobs of one process exclude each other as those of two processes
do, so that nothing here or above tells threads from processes. Descriptors are not inherited by programs we start.
On NFS, Linux turns flock into a lock at the server, which holds between machines.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_POLL_SECONDS = 0.001
_LONGEST_POLL_SECONDS = 0.016  # each look is a request where the directory is on NFS


class FileLock:
    """A lock that is held until it is released.

    Args:
        descriptor: Open file that carries the lock.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        """Hold it until the context closes."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Let go."""
        self.release()

    def share(self) -> None:
        """Turn an exclusive lock into a shared one; somebody may have it exclusively in between."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def note(self, number: int) -> None:
        """Leave a number for others to read with `read_note`."""
        os.pwrite(self._descriptor, b"%020d" % number, 0)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._descriptor >= 0:
            # Closing is not enough: a child that is being started just now may have a copy until it runs its program.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1


def try_lock(path: Path, *, exclusive: bool, create: bool = True) -> FileLock | None:
    """Lock a file without waiting.

    Args:
        path: The file.
        exclusive: For one holder, or shared with others that share.
        create: Make the file if it is not there.

    Returns:
        None if others hold it, or there is no such file and none is to be made.
    """
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        except FileNotFoundError:
            if create:
                raise
            return None
        if not _flock(descriptor, operation):
            return None
        if _is_at(descriptor, path):
            return FileLock(descriptor)
        os.close(descriptor)  # removed between open and lock: a lock on it would exclude nobody


def lock_within(path: Path, *, exclusive: bool, seconds: float) -> FileLock:
    """Lock a file that others hold for moments only.

    Raises:
        TimeoutError: Somebody holds it for longer, for example a process that was stopped.
    """
    deadline = time.monotonic() + seconds
    poll_seconds = _POLL_SECONDS
    while (lock := try_lock(path, exclusive=exclusive)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"locked by somebody else for {seconds:g} s", str(path))
        time.sleep(poll_seconds)
        poll_seconds = min(_LONGEST_POLL_SECONDS, poll_seconds * 2)
    return lock


def is_locked(path: Path) -> bool:
    """Whether somebody holds the file exclusively."""
    lock = try_lock(path, exclusive=False, create=False)
    if lock is None:
        return path.exists()
    lock.release()
    return False


def remove_lock(path: Path) -> None:
    """Remove a lock's file unless somebody holds it; who waits for it makes a new one."""
    lock = try_lock(path, exclusive=True, create=False)
    if lock:
        with lock:
            path.unlink()


def read_note(path: Path) -> int:
    """The number that the holder of a lock left last; 0 if there is none."""
    try:
        return int(path.read_bytes() or b"0")
    except (OSError, ValueError):
        return 0


def _flock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        os.close(descriptor)
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)

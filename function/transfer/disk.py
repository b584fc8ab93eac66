"""The file that parts are written to."""

from __future__ import annotations

import ctypes
import errno
import os

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS}


def reserve(descriptor: int, size_bytes: int) -> None:
    """Give a new file its length, and its room on the disk where the file system can promise that.

    `os.posix_fallocate` is not used: where the file system can't (NFS 3), the C library writes to each block instead.

    Raises:
        OSError: The disk is full, or the file may not be so large.
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    if size_bytes and fallocate(descriptor, 0, 0, size_bytes):
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
    os.ftruncate(descriptor, size_bytes)


def write_all(descriptor: int, chunk: memoryview, offset: int) -> None:
    """Write the whole chunk: a disk that fills up takes some of what it is given before it refuses.

    Raises:
        OSError: The disk refused.
    """
    while chunk:
        count = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[count:], offset + count

"""The file that parts are written to."""

from __future__ import annotations

import errno
import os

_BLOCK_BYTES = 512  # the unit of st_blocks
_WRITE_BYTES = 256 * 1024


def lengthen(descriptor: int, size_bytes: int) -> None:
    """Give a file its final length, if the disk has room for what it does not hold yet.

    The room is not reserved by fallocate: tmpfs fills it with zeros before the first byte can come, and where the file
    system can't (NFS 3) the C library writes to each block.

    Raises:
        OSError: The disk is full, or the file may not be so large.
    """
    disk, has_bytes = os.fstatvfs(descriptor), os.fstat(descriptor).st_blocks * _BLOCK_BYTES
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < size_bytes - has_bytes:  # some network disks count nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size_bytes)


def write_all(descriptor: int, chunk: memoryview, offset: int) -> None:
    """Write the whole chunk: a disk that fills up takes some of what it is given before it refuses.

    In pieces of 256 KiB: for larger ones the kernel looks for the largest pages, which are those that a virtual
    machine gives back to its host and has to get back first (four rounds on ext4: 1.3 GB/s against 0.5).

    Raises:
        OSError: The disk refused.
    """
    while chunk:
        count = os.pwrite(descriptor, chunk[:_WRITE_BYTES], offset)
        chunk, offset = chunk[count:], offset + count

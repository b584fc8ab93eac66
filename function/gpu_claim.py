"""One GPU for each of several functions that see the same ones, as scaled containers of one host do.

Docker gives every replica of a service the same GPUs. So each takes one of them by an exclusive flock on a file in a
directory that all share, named by the GPU's UUID, which is the same in every container. The kernel releases a lock
when the last process that holds it ends, however it ends: there is nothing to renew and nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from function.errors import SettingsError
from function.gpu import read_gpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.gpu import GpuStatus


def claim_gpu(
    directory: Path, *, visible: str | None = None, read: Callable[..., GpuStatus] = read_gpus
) -> tuple[str, int]:
    """Take the first GPU that answers and that nobody has.

    Args:
        directory: Where the claims lie; made if it is missing.
        visible: The value of CUDA_VISIBLE_DEVICES; only these GPUs are taken. None: any.
        read: Reads the GPUs, as `read_gpus` does.

    Returns:
        The GPU's UUID, and the descriptor whose lock is the claim: it lasts until every process that has inherited
        the descriptor by fork has closed it or ended. A program started by exec does not get it.

    Raises:
        SettingsError: There is no GPU, all are taken, or the directory can't be used.
    """
    status = read(visible=visible)
    if not status.gpus:
        raise SettingsError(f"GPU_CLAIM_DIR={str(directory)!r}: {status.problem or status.absence}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for gpu in status.gpus:
            descriptor = _try_lock(directory / gpu.uuid)
            if descriptor is not None:
                return gpu.uuid, descriptor
    except OSError as error:
        raise SettingsError(f"GPU_CLAIM_DIR={str(directory)!r}: {error.strerror}; make it writable") from error
    raise SettingsError(
        f"GPU_CLAIM_DIR={str(directory)!r}: all {len(status.gpus)} GPUs are taken; run no more replicas than GPUs"
    )


def _try_lock(path: Path) -> int | None:
    # The file stays for ever: two processes might hold locks on two files of one name if anybody removed it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

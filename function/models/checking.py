"""The checksum of a file on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK_BYTES = 4 * 1024 * 1024


def crc64nvme_of(path: Path, *, on_bytes: Callable[[int], None] = lambda _count: None) -> str:
    """CRC64NVME of a file, base64 as S3 writes it: about 0.1 s of CPU per GB, and a read of the whole file.

    Args:
        path: The file.
        on_bytes: Called with the number of bytes that were read since the last call.
    """
    from function.transfer.checksums import crc64nvme, to_base64  # noqa: PLC0415  (needed once per boot, slow to import)

    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = crc64nvme(chunk, crc)
            on_bytes(len(chunk))
    return to_base64(crc)

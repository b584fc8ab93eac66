"""CRC64NVME: the one checksum that parallel parts can compute and S3 stores for a whole object.

The library is imported by this module alone, and this module by the transfer process.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from awscrt.checksums import combine_crc64nvme, crc64nvme

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["combine", "crc64nvme", "to_base64"]


def combine(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC of a content from those of its parts, in order: pairs of CRC and length."""
    whole = 0
    for crc, length in parts:
        whole = combine_crc64nvme(whole, crc, length)
    return whole


def to_base64(crc: int) -> str:
    """As S3 writes it: base64 of eight bytes, most significant first."""
    return base64.b64encode(crc.to_bytes(8, "big")).decode()

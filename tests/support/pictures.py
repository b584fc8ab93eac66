"""Small pictures as the bytes of files."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from PIL import Image


def picture(file_format: str = "PNG", size: tuple[int, int] = (8, 6), color: str = "red") -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, file_format)
    return file.getvalue()


def to_base64(data: bytes) -> str:
    """Bare base64."""
    return base64.b64encode(data).decode()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header promises this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")

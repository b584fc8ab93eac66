"""The parts of a `multipart/form-data` body (RFC 7578), as the upload route needs them."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser


@dataclass(frozen=True, slots=True)
class Part:
    """One field: its name, its content, and the file name it came with, if any."""

    name: str
    content: bytes
    filename: str | None = None


def parse_multipart(content_type: str, body: bytes) -> dict[str, Part]:
    """The fields by name; of fields with one name the last.

    Raises:
        ValueError: The content type names no boundary.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise ValueError("not multipart/form-data with a boundary")
    chunks = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    parts = [_part(chunk.removeprefix(b"\r\n")) for chunk in chunks[1:] if not chunk.startswith(b"--")]
    return {part.name: part for part in parts}


def _part(chunk: bytes) -> Part:
    head, _, content = chunk.partition(b"\r\n\r\n")
    headers = BytesHeaderParser().parsebytes(head + b"\r\n\r\n")
    name = headers.get_param("name", "", "content-disposition")
    return Part(name if isinstance(name, str) else "", content, headers.get_filename())

"""Files that come inside a workflow, as data URIs or as bare base64, decoded piece by piece."""

from __future__ import annotations

import binascii
import mimetypes
from typing import TYPE_CHECKING

from function.errors import InputRefusedError
from function.inputs.magic import HEAD_BYTES, extension_of
from function.inputs.media import data_uri_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE_CHARACTERS = 1024 * 1024
_HEAD_CHARACTERS = 2 * HEAD_BYTES
_SHORTEST = 32  # no picture has fewer characters, and names may happen to be base64
_SPACE = b" \t\r\n"
_STANDARD = bytes.maketrans(b"-_", b"+/")  # comfyui-api reads both alphabets


def is_base64_file(value: str) -> bool:
    """Whether a value is the base64 of a picture, a video or a sound.

    It is if its beginning decodes to what such a file begins with. A slash at the beginning means nothing: that of a
    JPEG is `/9j/`.
    """
    return len(value) >= _SHORTEST and bool(extension_of(_head(value, 0)))


def inline_extension(value: str) -> str:
    """The extension of an inline file: by its first bytes, else by the media type of its data URI."""
    head = data_uri_head(value)
    found = extension_of(_head(value, head.end() if head else 0))
    return found or (head and head["media_type"] and mimetypes.guess_extension(head["media_type"])) or ""


def decode(value: str, *, write: Callable[[bytes], object]) -> None:
    """Write the bytes of a data URI, or of bare base64.

    Raises:
        InputRefusedError: It is broken.
    """
    head = data_uri_head(value)
    if head is None and value.startswith("data:"):
        raise InputRefusedError("a data URI must look like data:image/png;base64,...")
    try:
        for data in _decoded(value, head.end() if head else 0):
            write(data)
    except ValueError:
        raise InputRefusedError("it is not valid base64") from None


def _decoded(value: str, start: int) -> Iterator[bytes]:
    """The decoded pieces; missing padding is added, as most decoders do."""
    left = b""
    for begin in range(start, len(value), _PIECE_CHARACTERS):
        piece = left + _clean(value[begin : begin + _PIECE_CHARACTERS])
        whole = (len(piece) - 1) // 4 * 4  # the last four may be padded, and are kept until it is clear
        left = piece[whole:]
        yield binascii.a2b_base64(piece[:whole], strict_mode=True)
    yield binascii.a2b_base64(left + b"=" * (-len(left) % 4), strict_mode=True)


def _clean(piece: str) -> bytes:
    return piece.encode("ascii").translate(_STANDARD, _SPACE)


def _head(value: str, start: int) -> bytes:
    """The first bytes; none where the text isn't base64."""
    try:
        piece = _clean(value[start : start + _HEAD_CHARACTERS])
        return binascii.a2b_base64(piece[: len(piece) // 4 * 4], strict_mode=True)
    except ValueError:
        return b""

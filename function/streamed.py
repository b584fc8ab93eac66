"""A JSON document with files in base64, in pieces: no second copy of a file is made, however large it is."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PIECE_BYTES = 3 * 128 * 1024
"""Bytes of a file in one piece; three of them are four characters, so that the pieces join without padding."""


class FileInPieces(Protocol):
    """A file that is read when its turn comes, and again when the document is written again."""

    def __len__(self) -> int:
        """Its length in bytes."""
        ...

    def pieces(self, size: int, /) -> Iterator[bytes]:
        """Its bytes: pieces of exactly this size, the last one perhaps smaller."""
        ...


class DocumentWithFiles:
    """A JSON object whose last but some members are a list of files, or one file.

    Args:
        before: Its first members.
        name: The member that lists the files.
        files: Their contents.
        after: Its last members.
        listed: Whether the member is a list; otherwise it is the one file.
        wrapped: Each file is the only member of an object, under this name; "" for none.
    """

    def __init__(
        self,
        before: Mapping[str, Any],
        name: str,
        files: Sequence[bytes | FileInPieces],
        after: Mapping[str, Any],
        *,
        listed: bool = True,
        wrapped: str = "",
    ) -> None:
        self._opening, self._closing = (b"{" + to_json(wrapped) + b': "', b'"}') if wrapped else (b'"', b'"')
        self._head = to_json(before)[:-1] + b", " + to_json(name) + b": " + b"[" * listed
        self._files = files
        self._tail = b"]" * listed + (b", " + to_json(after)[1:] if after else b"}")

    def __len__(self) -> int:
        """The document's length in bytes."""
        around_bytes = len(self._opening) + len(self._closing)
        quoted_bytes = sum(4 * ((len(data) + 2) // 3) + around_bytes for data in self._files)
        separator_bytes = len(b", ") * max(0, len(self._files) - 1)
        return len(self._head) + quoted_bytes + separator_bytes + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        """The document from its beginning to its end; what is small leaves as one piece."""
        gathered = bytearray()
        for part in self._parts():
            gathered += part
            if len(gathered) >= _PIECE_BYTES:
                yield bytes(gathered)
                gathered.clear()
        yield bytes(gathered)

    def _parts(self) -> Iterator[bytes]:
        yield self._head
        for number, data in enumerate(self._files):
            yield (b", " if number else b"") + self._opening
            for piece in _pieces(data) if isinstance(data, bytes) else data.pieces(_PIECE_BYTES):
                yield base64.b64encode(piece)
            yield self._closing
        yield self._tail


def _pieces(data: bytes) -> Iterator[memoryview]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield memoryview(data)[start : start + _PIECE_BYTES]


def to_json(value: object) -> bytes:
    """JSON as every answer has it."""
    return json.dumps(value, ensure_ascii=False).encode()

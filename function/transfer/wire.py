"""What function and transfer process say to each other: one JSON object per line, in both directions.

To the process: `{"fetch": 1, "wanted": {...}}`, `{"stop": 1}`, `{"busy": true}`. From it: `{"fetch": 1, ...}` with
`done_bytes` (so far, what was there before included), or at the end with `crc64nvme`, or with `error`. The only
credentials in a line are those that came with one request: the process reads all others from its environment, as boto3
does.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from function.credentials import S3Account, UrlCredential
from function.errors import ComfyfnError, InputRefusedError, SettingsError, StorageUnavailableError
from function.storage.objects import ObjectChangedError, ObjectMissingError
from function.transfer.fetching import Fetch

if TYPE_CHECKING:
    from collections.abc import Mapping

    Message: TypeAlias = dict[str, Any]

_ERRORS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ObjectMissingError, ObjectChangedError, InputRefusedError, SettingsError, StorageUnavailableError)
}


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps(message).encode() + b"\n"


def parse(line: bytes) -> Message:
    """A line's message."""
    message: Message = json.loads(line)
    return message


def to_wanted(wanted: Fetch) -> Message:
    """A fetch as JSON; a path that is no text keeps its bytes as lone surrogates."""
    return asdict(wanted) | {"part": str(wanted.part)}


def parse_wanted(message: Message) -> Fetch:
    """A fetch from JSON."""
    credentials = tuple(_parse_credential(**members) for members in message["credentials"])
    return Fetch(**message | {"part": Path(message["part"]), "credentials": credentials})


def _parse_credential(
    url_pattern: str, headers: list[tuple[str, str]], query: str, account: dict[str, str] | None
) -> UrlCredential:
    pairs = tuple((name, value) for name, value in headers)
    return UrlCredential(url_pattern, pairs, query, S3Account(**account) if account else None)


def to_error(error: BaseException) -> Message:
    """An error as JSON: its class, if the other side may know it, and its line."""
    if isinstance(error, OSError):
        return {"kind": "OSError", "errno": error.errno, "message": error.strerror or "", "path": error.filename}
    kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), "")
    if kind:
        return {"kind": kind, "message": error.message if isinstance(error, ComfyfnError) else str(error)}
    return {"kind": "StorageUnavailableError", "message": f"the transfer failed ({type(error).__name__})"}


def parse_error(message: Message) -> Exception:
    """The error that the other side met."""
    if message["kind"] == "OSError":
        return OSError(message["errno"], message["message"], message["path"])
    return _ERRORS[message["kind"]](message["message"])

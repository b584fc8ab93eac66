"""Reading what strangers wrote: JSON that can be written again, text without control characters."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from events.event import MalformedEventError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_DEPTH = 200
"""Of objects and arrays in each other; a workflow has four. Readers and writers of JSON recurse, ours and others'."""

# CloudEvents 1.0.2 section 3.1 forbids control characters and lone surrogates in attributes.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, what: str) -> Any:  # noqa: ANN401  (any JSON value)
    """A JSON document of finite numbers and whole characters, at most MAX_DEPTH deep; bytes are UTF-8 (RFC 8259, 8.1).

    Raises:
        MalformedEventError: It is none; the message calls it `what`.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair has no UTF-8 and would fail far from here
    except (ValueError, RecursionError) as error:
        raise MalformedEventError(f"{what} is not valid JSON") from error
    _check_depth(value, what)
    return value


def _check_depth(value: Any, what: str) -> None:  # noqa: ANN401  (any JSON value)
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [member for container in level for member in _members(container)]
        if not level:
            return
    raise MalformedEventError(f"{what} has more than {MAX_DEPTH} objects and arrays in each other")


def _members(value: object) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def text_of(members: Mapping[str, Any], name: str, *, what: str) -> str:
    """A member that is text; "" if it is absent or null (CloudEvents JSON format 2.2: null means absent).

    Raises:
        MalformedEventError: It is no string, or has a control character or half a surrogate pair; the message calls it
            `what` with its name.
    """
    value = members.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedEventError(f"{what} {name} must be a string")
    return plain(value, f"{what} {name}")


def required(members: Mapping[str, Any], name: str, *, what: str) -> str:
    """A member that is text and not empty.

    Raises:
        MalformedEventError: It is missing, or no such text.
    """
    value = text_of(members, name, what=what)
    if not value:
        raise MalformedEventError(f"{what} {name} is missing or empty")
    return value


def plain(value: str, what: str) -> str:
    """The value itself.

    Raises:
        MalformedEventError: It has a control character or half a surrogate pair.
    """
    if _FORBIDDEN.search(value):
        raise MalformedEventError(f"{what} has a control character or half a surrogate pair")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number beyond the range of a double")
    return value

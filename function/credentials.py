"""Credentials for URLs, as lists of `{"url_pattern": ..., "auth": {...}}`. Pure but for the file that may hold them.

Form and meaning of the patterns are comfyui-api's: `*` is any text without a slash, `**` any text, `?` one character
that is no slash; a pattern describes the whole URL, its query included. The first match counts.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from function.sources import SourceUrl

CREDENTIALS_FORM = (
    'JSON, or the path of a file with JSON, like [{"url_pattern": "https://host/**", "auth": {"type": "bearer", '
    '"token": "..."}}]; other types are basic (username, password), header (header_name, header_value) and query '
    "(query_param, query_value)"
)

_WILDCARDS = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_OUR_HEADERS = frozenset({"host", "range", "if-range", "accept-encoding", "connection", "content-length"})


@dataclass(frozen=True, slots=True)
class UrlCredential:
    """What a request to some URLs carries. None of its secrets are in its `repr`.

    Attributes:
        url_pattern: Which URLs.
        headers: Headers to send.
        query: Percent-encoded `name=value` to add to the URL, or an empty text.
    """

    url_pattern: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    query: str = field(default="", repr=False)

    def matches(self, url: SourceUrl) -> bool:
        """Whether it is meant for this URL."""
        pieces = re.split(r"(\*\*|\*|\?)", self.url_pattern)
        pattern = "".join(_WILDCARDS.get(piece, re.escape(piece)) for piece in pieces)
        return re.fullmatch(pattern, url.origin + url.target, re.DOTALL) is not None


def find_credential(credentials: Iterable[UrlCredential], url: SourceUrl) -> UrlCredential | None:
    """The first one that is meant for a URL."""
    return next((credential for credential in credentials if credential.matches(url)), None)


def read_credentials(text: str) -> tuple[UrlCredential, ...]:
    """Read MODEL_URL_CREDENTIALS: JSON, or the path of a file that holds it.

    Raises:
        ValueError: With what is allowed; it quotes nothing of the text.
    """
    if not text:
        return ()
    try:
        content = text if text.lstrip().startswith("[") else Path(text).read_text(encoding="utf-8")
        entries = json.loads(content)
    except (OSError, ValueError):
        raise ValueError(CREDENTIALS_FORM) from None
    return parse_credentials(entries)


def parse_credentials(entries: object) -> tuple[UrlCredential, ...]:
    """Check a list of credentials.

    Raises:
        ValueError: With what is allowed; it quotes nothing of the entries.
    """
    try:
        if isinstance(entries, list):
            return tuple(_parse_entry(entry) for entry in entries)
    except (TypeError, KeyError, AttributeError, ValueError):
        raise ValueError(CREDENTIALS_FORM) from None
    raise ValueError(CREDENTIALS_FORM)


def _parse_entry(entry: dict[str, Any]) -> UrlCredential:
    headers, query = _parse_auth(**entry["auth"])
    pattern = entry["url_pattern"]
    sound = all(_is_sound(name, value) for name, value in headers)
    if not isinstance(pattern, str) or not sound:
        raise ValueError
    return UrlCredential(pattern, headers, query)


def _is_sound(name: str, value: str) -> bool:
    clear = _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)
    return clear is not None and name.lower() not in _OUR_HEADERS


_Auth: TypeAlias = tuple[tuple[tuple[str, str], ...], str]


def _parse_auth(*, type: str, **members: object) -> _Auth:  # noqa: A002  (the member's name)
    if not all(isinstance(value, str) for value in members.values()):
        raise TypeError
    return _AUTH[type](**members)


def _bearer(*, token: str) -> _Auth:
    return (("Authorization", f"Bearer {token}"),), ""


def _basic(*, username: str, password: str) -> _Auth:
    pair = base64.b64encode(f"{username}:{password}".encode()).decode()
    return (("Authorization", f"Basic {pair}"),), ""


def _header(*, header_name: str, header_value: str) -> _Auth:
    return ((header_name, header_value),), ""


def _query(*, query_param: str, query_value: str) -> _Auth:
    return (), urlencode({query_param: query_value})


_AUTH: dict[str, Callable[..., _Auth]] = {"bearer": _bearer, "basic": _basic, "header": _header, "query": _query}

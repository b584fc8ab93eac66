"""Credentials for URLs, as lists of `{"url_pattern": ..., "auth": {...}}`. Pure but for the file that may hold them.

Form and meaning are comfyui-api's: see `url_patterns`; a pattern describes the whole URL, its query included. The first
match counts.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode

from function.errors import InputRefusedError
from function.sources import parse_source_url
from function.url_patterns import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from function.sources import SourceUrl

CREDENTIALS_FORM = (
    'JSON, or the path of a file with JSON, like [{"url_pattern": "https://host/**", "auth": {"type": "bearer", '
    '"token": "..."}}]; other types are basic (username, password), header (header_name, header_value), query '
    "(query_param, query_value) and s3 (access_key_id, secret_access_key, and perhaps session_token, endpoint, region)"
)

_LOGIN = re.compile(r"(?P<scheme>https?://)(?P<name>[^/?#:@]*):?(?P<password>[^/?#@]*)@", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_OUR_HEADERS = frozenset({"host", "range", "if-range", "accept-encoding", "connection", "content-length"})


@dataclass(frozen=True, slots=True, repr=False)
class S3Account:
    """Whose objects are read, and where.

    Attributes:
        access_key_id: Whose.
        secret_access_key: What requests are signed with.
        session_token: Of a temporary account, else "".
        endpoint: URL of the S3 server; "" for the one that the function itself uses.
        region: Region of the bucket; "" for the function's own.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str = ""
    endpoint: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True)
class UrlCredential:
    """What a request to some URLs carries. None of its secrets are in its `repr`.

    Attributes:
        url_pattern: Which URLs.
        headers: Headers to send.
        query: Percent-encoded `name=value` to add to the URL, or an empty text.
        account: Of `s3://` URLs; None for others.
    """

    url_pattern: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    query: str = field(default="", repr=False)
    account: S3Account | None = field(default=None, repr=False)

    def matches(self, url: SourceUrl) -> bool:
        """Whether it is meant for this URL: an account for `s3://` alone, everything else for http and https alone."""
        return (url.scheme == "s3") == (self.account is not None) and matches(self.url_pattern, url.origin + url.target)


def find_credential(credentials: Iterable[UrlCredential], url: SourceUrl) -> UrlCredential | None:
    """The first one that is meant for a URL."""
    return next((credential for credential in credentials if credential.matches(url)), None)


def matching_credential(credentials: Iterable[UrlCredential], value: str) -> UrlCredential | None:
    """The first one that is meant for a text, if that is a URL."""
    try:
        return find_credential(credentials, parse_source_url(value))
    except ValueError:
        return None


def parse_url_with_login(text: str) -> tuple[SourceUrl, tuple[UrlCredential, ...]]:
    """A URL, and what a user name and a password in it are good for: its own host.

    Raises:
        ValueError: With what can't be used.
    """
    login = _LOGIN.match(text)
    url = parse_source_url(login["scheme"] + text[login.end() :] if login else text)
    if login is None:
        return url, ()
    return url, (_basic(f"{url.origin}/**", username=unquote(login["name"]), password=unquote(login["password"])),)


def carried(
    url: SourceUrl, credential: UrlCredential | None, *, over_http: bool, what: str
) -> tuple[str, dict[str, str]]:
    """The target of a request that carries a credential, and the headers.

    Args:
        url: Where it goes.
        credential: The one that was found for it.
        over_http: Whether it may go over plain http.
        what: What is asked for, as it may be shown.

    Raises:
        InputRefusedError: It would go over plain http.
    """
    if credential is None:
        return url.target, {}
    check_secrecy(url, over_http=over_http, what=what)
    joined = ("&" if url.query else "?") + credential.query if credential.query else ""
    return url.target + joined, dict(credential.headers)


def check_secrecy(url: SourceUrl, *, over_http: bool, what: str) -> None:
    """Refuse to send what is secret over plain http; arguments and error are those of `carried`."""
    if url.scheme == "http" and not over_http:
        raise InputRefusedError(f"{what}: credentials are sent by https only, or with ALLOW_PRIVATE_NETWORKS")


def account_of(credentials: Iterable[UrlCredential]) -> S3Account | None:
    """The account among the credentials that were chosen for one `s3://` URL."""
    return next((credential.account for credential in credentials if credential.account), None)


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
    pattern = entry["url_pattern"]
    credential = _parse_auth(pattern, **entry["auth"])
    if not isinstance(pattern, str) or not all(_is_sound(name, value) for name, value in credential.headers):
        raise ValueError
    return credential


def _is_sound(name: str, value: str) -> bool:
    clear = _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)
    return clear is not None and name.lower() not in _OUR_HEADERS


def _parse_auth(pattern: str, *, type: str, **members: object) -> UrlCredential:  # noqa: A002  (the member's name)
    if not all(isinstance(value, str) for value in members.values()):
        raise TypeError
    return _AUTH[type](pattern, **members)


def _basic(pattern: str, *, username: str, password: str) -> UrlCredential:
    pair = base64.b64encode(f"{username}:{password}".encode()).decode()
    return UrlCredential(pattern, (("Authorization", f"Basic {pair}"),))


def _bearer(pattern: str, *, token: str) -> UrlCredential:
    return UrlCredential(pattern, (("Authorization", f"Bearer {token}"),))


def _header(pattern: str, *, header_name: str, header_value: str) -> UrlCredential:
    return UrlCredential(pattern, ((header_name, header_value),))


def _query(pattern: str, *, query_param: str, query_value: str) -> UrlCredential:
    return UrlCredential(pattern, query=urlencode({query_param: query_value}))


def _s3(pattern: str, **members: str) -> UrlCredential:
    return UrlCredential(pattern, account=S3Account(**members))


_AUTH: dict[str, Callable[..., UrlCredential]] = {
    "bearer": _bearer,
    "basic": _basic,
    "header": _header,
    "query": _query,
    "s3": _s3,
}

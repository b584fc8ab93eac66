"""URLs that callers may name, and the list of those that are allowed. Pure.

A URL is taken apart here, once and strictly, so that what is checked is what is fetched: a text that two parsers could
read differently is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from function.errors import InputRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_PORTS = {"https": 443, "http": 80, "s3": 0}

ALLOWED_FORM = (
    "a comma list of hosts (huggingface.co, *.hf.co) and URL prefixes (https://host/path, s3://bucket/prefix)"
)

_ANY = "any"  # stands for the star while an entry is taken apart
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
_UNCLEAR = re.compile(r"[\x00-\x1f\x7f\\]")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_QUERY_SAFE = f"{_PATH_SAFE}?[]|"


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """One URL, taken apart.

    Attributes:
        scheme: `https`, `http` or `s3`.
        host: Name or address, in lower case and without brackets; the bucket of `s3`.
        port: The port that it means, 0 for `s3`.
        path: With its leading slash; percent-encoded for http, literal for `s3`.
        query: Without its question mark; it may hold a secret.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        """What may be shown and stored: everything but the query."""
        return self.origin + self.path

    @property
    def origin(self) -> str:
        """`https://host:port`, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port != DEFAULT_PORTS[self.scheme] else ""
        return f"{self.scheme}://{host}{port}"

    @property
    def target(self) -> str:
        """Path and query, as a request asks for them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def filename(self) -> str:
        """Last part of the path, decoded."""
        path = self.path if self.scheme == "s3" else unquote(self.path)
        return path.rpartition("/")[2]


def parse_source_url(text: str) -> SourceUrl:
    """Take an `s3://`, `https://` or `http://` URL apart; its fragment is dropped.

    Raises:
        ValueError: With the reason, which quotes nothing of the text.
    """
    if _UNCLEAR.search(text):
        raise ValueError("it holds a backslash or a control character")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("its host or port is malformed") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError("it begins neither with https:// nor with s3://")
    if "@" in parts.netloc:
        raise ValueError("it holds a user name or password; those belong into MODEL_URL_CREDENTIALS")
    if not _is_host(host) or port == 0:
        raise ValueError("its host or port is malformed")
    if parts.scheme == "s3":
        return _s3_url(text, host, port)
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    _check_segments(unquote(path))
    return SourceUrl(
        parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path, quote(parts.query, safe=_QUERY_SAFE)
    )


def _s3_url(text: str, bucket: str, port: int | None) -> SourceUrl:
    path = "/" + text.partition("://")[2].partition("/")[2]
    if port is not None or "?" in path or "#" in path:
        raise ValueError("its bucket and key have no port, query or fragment beside them")
    _check_segments(path)
    return SourceUrl("s3", bucket, 0, path)


def _is_host(host: str) -> bool:
    if ":" not in host:
        return bool(_HOST.fullmatch(host))
    try:
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False


def _check_segments(path: str) -> None:
    if _UNCLEAR.search(path) or any(segment in {".", ".."} for segment in path.split("/")):
        raise ValueError("its path is not plain")


@dataclass(frozen=True, slots=True)
class AllowedUrls:
    """One entry of MODEL_URL_ALLOW.

    Attributes:
        scheme: As in the URLs it allows, and so are the other parts.
        host: A name; `*.name` for every name below it; `*` for every host.
        port: The port.
        path: The path, or the folders that it begins with.
    """

    scheme: str
    host: str
    port: int
    path: str

    def allow(self, url: SourceUrl) -> bool:
        """Whether a URL is one of them."""
        return (self.scheme, self.port) == (url.scheme, url.port) and self._has(url.host) and self._holds(url.path)

    def _has(self, host: str) -> bool:
        return self.host in {"*", host} or (self.host.startswith("*.") and host.endswith(self.host[1:]))

    def _holds(self, path: str) -> bool:
        return path == self.path or path.startswith(f"{self.path.rstrip('/')}/")


def parse_allowed(entry: str) -> AllowedUrls:
    """Read one entry: a host, which means https, or the beginning of a URL.

    Raises:
        ValueError: With what is allowed.
    """
    full = entry if "://" in entry else f"https://{entry}"
    wildcard = "://*" in full
    try:
        url = parse_source_url(full.replace("://*", f"://{_ANY}", 1))
    except ValueError:
        raise ValueError(ALLOWED_FORM) from None
    rest = url.host.removeprefix(_ANY) if wildcard else ""
    if url.query or (wildcard and url.scheme == "s3") or rest[:1] not in {"", "."}:
        raise ValueError(ALLOWED_FORM)
    return AllowedUrls(url.scheme, f"*{rest}" if wildcard else url.host, url.port, url.path)


def parse_allow_list(text: str) -> tuple[AllowedUrls, ...]:
    """Read MODEL_URL_ALLOW.

    Raises:
        ValueError: With what is allowed.
    """
    return tuple(parse_allowed(entry.strip()) for entry in text.split(",") if entry.strip())


def check_allowed(url: SourceUrl, allow: Iterable[AllowedUrls], *, what: str, setting: str = "MODEL_URL_ALLOW") -> None:
    """Refuse a URL that no entry allows.

    Raises:
        InputRefusedError: Naming `what`, the setting and the value that it lacks; of the URL only its origin.
    """
    if not any(entry.allow(url) for entry in allow):
        needed = url.origin.removeprefix("https://")
        raise InputRefusedError(f"{what}: {url.origin} is not allowed; add {needed} to {setting}")

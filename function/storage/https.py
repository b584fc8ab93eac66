"""`https://host`: single files of other people's servers, read by ranges or whole, guarded.

Every request, redirects included, goes to a URL that a setting allows and to an address that was checked after the
name was resolved (`connecting`). Credentials are sent by https alone, unless addresses of private networks are allowed:
where they are, http is often all there is.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from function.credentials import carried, find_credential
from function.errors import InputRefusedError
from function.sources import check_allowed, parse_source_url
from function.storage.connecting import ConnectionRules, Connector
from function.storage.http_answers import HttpAnswer, info_of, read_range, read_whole, stream_whole
from function.storage.objects import ObjectMissingError, TransientStorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from function.credentials import UrlCredential
    from function.sources import AllowedUrls, SourceUrl
    from function.storage.objects import ObjectInfo, RangeStream

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200
_PARTIAL = 206
_GONE = frozenset({404, 410})


@dataclass(frozen=True, slots=True)
class FetchRules(ConnectionRules):
    """What may be fetched, and how.

    Attributes:
        allow: The URLs, those of redirects too.
        setting: Where they are named, for messages.
        credentials: What requests to some of them carry.
        trusted: Those that the operator named one by one: what they redirect to is allowed too if it is https.
    """

    allow: tuple[AllowedUrls, ...] = ()
    setting: str = "MODEL_URL_ALLOW"
    trusted: tuple[AllowedUrls, ...] = ()
    credentials: tuple[UrlCredential, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class _Hop:
    """One URL of a chain of redirects, with what the requests before it carried and where to."""

    url: SourceUrl
    sent: tuple[tuple[UrlCredential, str], ...] = ()

    def credential(self, rules: FetchRules) -> UrlCredential | None:
        """What this request carries: never what was sent to another origin before."""
        found = find_credential(rules.credentials, self.url)
        elsewhere = any(credential == found and origin != self.url.origin for credential, origin in self.sent)
        return None if elsewhere else found


class HttpsOrigin:
    """The files of one host. Keys are paths with their queries, percent-encoded, without the leading slash.

    Args:
        url: `https://host` or `https://host:port`.
        rules: What may be fetched, and how.
    """

    def __init__(self, url: str, *, rules: FetchRules) -> None:
        self.url = url
        self._rules = rules
        self._connector = Connector(rules)
        self._landed: dict[str, _Hop] = {}

    def object_url(self, key: str) -> str:
        """URL of one file without its query."""
        return str(self._source(key))

    def head(self, key: str) -> ObjectInfo:
        """Describe one file, by HEAD, or where that is refused by a GET of its first byte.

        Its identity is a strong ETag, else Last-Modified with the length.

        Raises:
            ObjectMissingError: The server says that there is none.
            InputRefusedError: The URL or a redirect is not allowed, the server refuses us for good, or does not say
                what identifies the file and how long it is.
            StorageUnavailableError: The server does not answer, or answers that it can't.
        """
        self._landed.pop(key, None)
        with closing(self._land(key, "HEAD")) as answer:
            if answer.status in _GONE:
                raise ObjectMissingError(self.object_url(key))
            if answer.status == _OK and answer.size_bytes is not None:
                return info_of(answer, key, self.object_url(key))
        with closing(self._land(key, "GET", {"Range": "bytes=0-0"})) as answer:
            return info_of(answer, key, self.object_url(key))

    @contextmanager
    def open_range(self, key: str, start: int, length: int, *, etag: str) -> Iterator[RangeStream]:
        """A stream of part of a file.

        A server without ranges serves a file that is read in one piece; what it sends is checked all the same.

        Raises:
            ObjectMissingError: There is none.
            ObjectChangedError: The file has another identity now.
            InputRefusedError: As for `head`, or the server has no ranges.
            StorageUnavailableError: As for `head`.
        """
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        with closing(self._land(key, "GET", headers)) as answer:
            yield read_range(answer, self.object_url(key), start, length, etag=etag)

    @contextmanager
    def open_whole(self, key: str) -> Iterator[RangeStream]:
        """A stream of one file, as it is at this moment, whether or not the server says how long it is.

        Raises:
            ObjectMissingError: There is none.
            InputRefusedError: As for `head`, but for length and identity.
            StorageUnavailableError: As for `head`; the stream's TransientStorageError too where it breaks off.
        """
        with closing(self._land(key, "GET")) as answer:
            yield stream_whole(answer, self.object_url(key))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read one small file whole, as it is at this moment, whether or not the server says what identifies it.

        Raises:
            ObjectMissingError: There is none.
            InputRefusedError: As for `head`, but for what identifies the file.
            StorageUnavailableError: As for `head`, or it is larger than `max_bytes`.
        """
        with closing(self._land(key, "GET")) as answer:
            return read_whole(answer, self.object_url(key), max_bytes=max_bytes)

    def _source(self, key: str) -> SourceUrl:
        try:
            return parse_source_url(f"{self.url}/{key}")
        except ValueError as error:
            raise InputRefusedError(f"{self.url}: a URL can't be used: {error}") from None

    def _land(self, key: str, method: str, headers: Mapping[str, str] | None = None) -> HttpAnswer:
        """The answer at the end of the redirects; the next request starts there, and anew when it is turned away."""
        source = self._source(key)
        landed = self._landed.get(key)
        if landed:
            answer, self._landed[key] = self._follow(landed, source, method, headers or {})
            if answer.status in {_OK, _PARTIAL}:
                return answer
            answer.close()
        answer, self._landed[key] = self._follow(_Hop(source), source, method, headers or {})
        return answer

    def _follow(self, hop: _Hop, source: SourceUrl, method: str, headers: Mapping[str, str]) -> tuple[HttpAnswer, _Hop]:
        shown = str(source)
        trusted = any(entry.allow(source) for entry in self._rules.trusted)
        for _ in range(MAX_REDIRECTS + 1):
            if not (trusted and hop.url.scheme == "https"):
                check_allowed(hop.url, self._rules.allow, what=shown, setting=self._rules.setting)
            credential = hop.credential(self._rules)
            target, carries = carried(hop.url, credential, over_http=self._rules.allow_private, what=shown)
            answer = self._ask(hop.url, method, target, {**headers, **carries})
            if answer.status not in _REDIRECTS:
                return answer, hop
            answer.close()
            sent = (*hop.sent, (credential, hop.url.origin)) if credential else hop.sent
            hop = _Hop(_redirected(hop.url, answer.header("Location"), shown), sent)
        raise InputRefusedError(f"{shown}: more than {MAX_REDIRECTS} redirects")

    def _ask(self, url: SourceUrl, method: str, target: str, headers: Mapping[str, str]) -> HttpAnswer:
        """One request; its connection ends with the answer. http.client asks for content that is not compressed."""
        connection = self._connector.connect(url)
        connected = connection.sock
        try:
            connection.request(method, target, headers={**headers, "User-Agent": "comfyfn", "Connection": "close"})
            return HttpAnswer(connection.getresponse(), connection, connected)
        except (OSError, HTTPException) as error:
            connection.close()
            raise TransientStorageError(f"{url.origin}: no answer ({type(error).__name__})") from error


def _redirected(url: SourceUrl, location: str, shown: str) -> SourceUrl:
    try:
        target = parse_source_url(urljoin(url.origin + url.target, location))
    except ValueError as error:
        raise InputRefusedError(f"{shown}: redirects to a URL that can't be used: {error}") from None
    if target.scheme == "s3" or not location:
        raise InputRefusedError(f"{shown}: redirects to nowhere that could be followed")
    return target

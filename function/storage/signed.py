"""A bucket of an S3 server that a request names, read with the request's own account.

boto3 would resolve the endpoint's name by itself and connect to whatever address it has. So boto3 only signs, which
takes no connection, and the signed URLs are fetched as other people's URLs are: guarded at the address.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from function.errors import InputRefusedError
from function.sources import parse_source_url
from function.storage import open_store
from function.storage.https import HttpsOrigin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.credentials import S3Account
    from function.storage.https import FetchRules
    from function.storage.objects import ObjectInfo, RangeStream

_EXPIRES_SECONDS = 6 * 3600  # longer than any job
_REGION = "us-east-1"  # what S3 servers without regions take


class SignedOrigin:
    """The objects of one bucket; keys are plain keys.

    Args:
        url: `s3://bucket`.
        account: Whose, and at which endpoint.
        rules: What may be fetched; the endpoint has to be allowed.

    Raises:
        InputRefusedError: The endpoint is no URL.
    """

    def __init__(self, url: str, account: S3Account, *, rules: FetchRules) -> None:
        try:
            endpoint = parse_source_url(account.endpoint)
        except ValueError as error:
            raise InputRefusedError(f"{url}: the endpoint of its credentials can't be used: {error}") from None
        if endpoint.scheme == "s3":
            raise InputRefusedError(f"{url}: the endpoint of its credentials can't be used: it is no https:// URL")
        self.url = url
        self._store = open_store(url, account=replace(account, region=account.region or _REGION))
        self._rules = replace(rules, credentials=())
        self._signed: dict[str, tuple[HttpsOrigin, str]] = {}

    def object_url(self, key: str) -> str:
        """The https URL that is asked for, without what it is signed with."""
        origin, target = self._sign(key)
        return origin.object_url(target)

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; see `HttpsOrigin.head`."""
        origin, target = self._sign(key)
        return replace(origin.head(target), key=key)

    @contextmanager
    def open_range(self, key: str, start: int, length: int, *, etag: str) -> Iterator[RangeStream]:
        """A stream of part of the content with this ETag."""
        origin, target = self._sign(key)
        with origin.open_range(target, start, length, etag=etag) as stream:
            yield stream

    @contextmanager
    def open_whole(self, key: str) -> Iterator[RangeStream]:
        """A stream of one object; see `HttpsOrigin.open_whole`."""
        origin, target = self._sign(key)
        with origin.open_whole(target) as stream:
            yield stream

    def _sign(self, key: str) -> tuple[HttpsOrigin, str]:
        if key not in self._signed:
            url = parse_source_url(self._store.presign(key, expires_seconds=_EXPIRES_SECONDS))
            self._signed[key] = HttpsOrigin(url.origin, rules=self._rules), url.target.removeprefix("/")
        return self._signed[key]

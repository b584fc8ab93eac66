"""A bucket of an S3 server that a request names, read with the request's own account.

boto3 would resolve the endpoint's name by itself and connect to whatever address it has. So boto3 only signs, which
takes no connection, and the signed URLs are fetched as other people's URLs are: guarded at the address.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from function.credentials import check_secrecy
from function.errors import InputRefusedError
from function.sources import parse_source_url
from function.storage import open_store
from function.storage.https import HttpsOrigin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.credentials import S3Account
    from function.storage.https import FetchRules
    from function.storage.objects import ObjectInfo, ObjectStore, RangeStream

_EXPIRES_SECONDS = 6 * 3600  # longer than any job
_REGION = "us-east-1"  # what S3 servers without regions take


@dataclass(frozen=True, slots=True)
class _Signed:
    """A URL that was signed: whose it is, the rest of it, and until when it is used."""

    origin: HttpsOrigin
    target: str
    until: float


class SignedOrigin:
    """The objects of one bucket; keys are plain keys.

    Args:
        url: `s3://bucket`.
        account: Whose, and at which endpoint.
        rules: What may be fetched; the endpoint has to be allowed.
        open_store: Opens the bucket, for its signatures.
        clock: Monotonic seconds.

    Raises:
        InputRefusedError: The endpoint is no URL, or one of plain http, where whoever listens could use the signed URL.
    """

    def __init__(
        self,
        url: str,
        account: S3Account,
        *,
        rules: FetchRules,
        open_store: Callable[..., ObjectStore] = open_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            endpoint = parse_source_url(account.endpoint)
        except ValueError as error:
            raise InputRefusedError(f"{url}: the endpoint of its credentials can't be used: {error}") from None
        if endpoint.scheme == "s3":
            raise InputRefusedError(f"{url}: the endpoint of its credentials can't be used: it is no https:// URL")
        check_secrecy(endpoint, over_http=rules.allow_private, what=url)
        self.url = url
        self._store = open_store(url, account=replace(account, region=account.region or _REGION))
        self._rules = replace(rules, credentials=())
        self._clock = clock
        self._signed: dict[str, _Signed] = {}

    def object_url(self, key: str) -> str:
        """The https URL that is asked for, without what it is signed with."""
        signed = self._sign(key)
        return signed.origin.object_url(signed.target)

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; see `HttpsOrigin.head`."""
        signed = self._sign(key)
        return replace(signed.origin.head(signed.target), key=key)

    @contextmanager
    def open_range(self, key: str, start: int, length: int, *, etag: str) -> Iterator[RangeStream]:
        """A stream of part of the content with this ETag."""
        signed = self._sign(key)
        with signed.origin.open_range(signed.target, start, length, etag=etag) as stream:
            yield stream

    @contextmanager
    def open_whole(self, key: str) -> Iterator[RangeStream]:
        """A stream of one object; see `HttpsOrigin.open_whole`."""
        signed = self._sign(key)
        with signed.origin.open_whole(signed.target) as stream:
            yield stream

    def _sign(self, key: str) -> _Signed:
        """A URL that is good for half of its time at least: this origin may be kept for longer than any URL is."""
        signed = self._signed.get(key)
        if signed is None or self._clock() >= signed.until:
            until = self._clock() + _EXPIRES_SECONDS / 2
            url = parse_source_url(self._store.presign(key, expires_seconds=_EXPIRES_SECONDS))
            origin = HttpsOrigin(url.origin, rules=self._rules)
            signed = self._signed[key] = _Signed(origin, url.target.removeprefix("/"), until)
        return signed

"""Where single files are read from: stores, other people's buckets, and https hosts that the settings allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from function.sources import ANY_HTTP, AllowedUrls, parse_source_url
from function.storage import open_store
from function.storage.https import FetchRules, HttpsOrigin
from function.storage.signed import SignedOrigin

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from function.config import Settings
    from function.credentials import S3Account
    from function.storage.objects import ObjectInfo, RangeStream


class Origin(Protocol):
    """What it takes to bring a file: the reading half of `ObjectStore`, whose words and errors these are.

    A key may hold a secret (an https URL's query): it is shown and stored only as `object_url` writes it.
    """

    @property
    def url(self) -> str:
        """What `open_origin` opens it by: `s3://bucket/prefix`, `file:///dir` or `https://host`. No secret."""
        ...

    def object_url(self, key: str) -> str:
        """The URL of one object, without secrets."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        ...

    def open_range(self, key: str, start: int, length: int, *, etag: str) -> AbstractContextManager[RangeStream]:
        """A stream of part of the content with this ETag."""
        ...


def fetch_rules(settings: Settings) -> FetchRules:
    """What the settings let be fetched as models, and how; the manifest's URLs are allowed one by one."""
    urls = map(parse_source_url, settings.manifest.urls)
    named = tuple(AllowedUrls(url.scheme, url.host, url.port, url.path) for url in urls)
    return FetchRules(
        allow=(*settings.model_url_allow, *named),
        trusted=named,
        credentials=settings.model_url_credentials,
        allow_private=settings.allow_private_networks,
    )


def input_rules(settings: Settings) -> FetchRules:
    """What the settings let be fetched as input files, and how.

    Where senders may name any URL, the operator's credentials are not for them.
    """
    named = settings.input_url_allow != ANY_HTTP
    return FetchRules(
        allow=settings.input_url_allow,
        setting="INPUT_URL_ALLOW",
        credentials=settings.model_url_credentials if named else (),
        allow_private=settings.allow_private_networks,
        plain_http=True,
        read_seconds=10.0,
    )


def open_origin(
    url: str,
    *,
    rules: FetchRules,
    account: S3Account | None = None,
    open_store: Callable[..., Origin] = open_store,
) -> Origin:
    """The origin of a URL; nothing is read or connected yet.

    Args:
        url: As `Origin.url` gives it.
        rules: What may be fetched over https, and how.
        account: Whose a bucket is; None: the function's own.
        open_store: Opens stores.

    Raises:
        SettingsError: The URL is none of these.
        InputRefusedError: The account's endpoint can't be used.
    """
    if url.startswith(("https://", "http://")):
        return HttpsOrigin(url, rules=rules)
    if account and account.endpoint:
        return SignedOrigin(url, account, rules=rules)
    return open_store(url, account=account) if account else open_store(url)

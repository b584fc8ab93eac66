"""Where single files are read from: stores, and https hosts that the settings allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from function.sources import AllowedUrls, parse_source_url
from function.storage import open_store
from function.storage.https import FetchRules, HttpsOrigin

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from function.config import Settings
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
    """What the settings let be fetched over https, and how; the manifest's URLs are allowed one by one."""
    urls = map(parse_source_url, settings.manifest.urls)
    named = tuple(AllowedUrls(url.scheme, url.host, url.port, url.path) for url in urls)
    return FetchRules(
        allow=(*settings.model_url_allow, *named),
        trusted=named,
        credentials=settings.model_url_credentials,
        allow_private=settings.allow_private_networks,
    )


def open_origin(url: str, *, rules: FetchRules, open_store: Callable[[str], Origin] = open_store) -> Origin:
    """The origin of a URL; nothing is read or connected yet.

    Args:
        url: As `Origin.url` gives it.
        rules: What may be fetched over https, and how.
        open_store: Opens the others.

    Raises:
        SettingsError: The URL is none of these.
    """
    if url.startswith(("https://", "http://")):
        return HttpsOrigin(url, rules=rules)
    return open_store(url)

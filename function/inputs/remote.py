"""Input files of other people's servers and buckets, as a workflow names them by URL."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from function.credentials import find_credential, parse_url_with_login
from function.errors import InputMissingError, InputRefusedError, InputUnavailableError, StorageUnavailableError
from function.sources import ANY_HTTP, check_allowed
from function.storage import open_store
from function.storage.https import HttpsOrigin
from function.storage.objects import ObjectChangedError, ObjectMissingError
from function.storage.signed import SignedOrigin
from function.transfer.patience import Patience, repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from function.credentials import UrlCredential
    from function.inputs.errand import Arrival
    from function.sources import SourceUrl
    from function.storage.https import FetchRules
    from function.storage.objects import ObjectStore

_BUFFER_BYTES = 256 * 1024


class RemoteFiles:
    """Fetches what INPUT_URL_ALLOW allows.

    Args:
        rules: What may be fetched, and how. Every http and https URL that they allow, `s3://` ones too if a request
            brings the account; with the function's own account only those that are named.
        open_store: Opens buckets.
    """

    def __init__(self, rules: FetchRules, *, open_store: Callable[..., ObjectStore] = open_store) -> None:
        self._rules = rules
        self._open_store = open_store
        self._own_store = cache(open_store)  # with the function's own account: the buckets that the setting names

    def fetch(self, value: str, path: Path, *, credentials: tuple[UrlCredential, ...], arrival: Arrival) -> None:
        """Write the file of a URL to a path.

        What a request brought comes before a user name and password in the URL, and these before the settings.

        Raises:
            InputRefusedError: The URL or its host is not allowed, the server refuses us, or the file is too large.
            InputMissingError: There is no such file.
            InputUnavailableError: The server fails for longer than a few tries take.
            StorageUnavailableError: The same of a bucket that is read with the function's own account.
        """
        url, login = _take_apart(value)
        given = (*credentials, *login, *self._rules.credentials)
        rules = replace(self._rules, credentials=given, watch=arrival.errand)
        key = url.target.removeprefix("/")
        with _translated(url):
            if url.scheme != "s3":
                _stream(HttpsOrigin(url.origin, rules=rules), key, path, arrival)
            else:
                self._copy_object(url, rules, key, path, arrival)

    def _copy_object(self, url: SourceUrl, rules: FetchRules, key: str, path: Path, arrival: Arrival) -> None:
        found = find_credential(rules.credentials, url)
        account = found.account if found else None
        if account is None or rules.allow != ANY_HTTP:
            check_allowed(url, rules.allow, what=str(url), setting=rules.setting)
        if account is None:
            copy_object(self._own_store(url.origin), key, path, arrival)
        elif account.endpoint:
            _stream(SignedOrigin(url.origin, account, rules=rules), key, path, arrival)
        else:
            with _final():
                copy_object(self._open_store(url.origin, account=account), key, path, arrival)


def remote_name(value: str) -> str:
    """The file name in a URL; "" where there is none."""
    try:
        return _take_apart(value)[0].filename
    except InputRefusedError:
        return ""


def copy_object(store: ObjectStore, key: str, path: Path, arrival: Arrival) -> None:
    """Write an object of a store to a path.

    Raises:
        ObjectMissingError, ObjectChangedError: There is none, or another one in the meantime.
        InputRefusedError: It is too large.
        StorageUnavailableError: The store does not answer.
        As `Errand.check`.
    """
    info = store.head(key)
    arrival.expect(info.size_bytes)
    arrival.errand.check()  # the path may be another delivery's by now
    store.download(key, path, etag=info.etag, on_bytes=arrival.add)


def _take_apart(value: str) -> tuple[SourceUrl, tuple[UrlCredential, ...]]:
    """A URL, and what its user name and password are good for: its own host."""
    try:
        return parse_url_with_login(value)
    except ValueError as error:
        raise InputRefusedError(f"this URL can't be used: {error}") from None


def _stream(origin: HttpsOrigin | SignedOrigin, key: str, path: Path, arrival: Arrival) -> None:
    """Write a file of somebody else's server, asked for again where that may help."""
    with _final():
        repeated(lambda: _copy_stream(origin, key, path, arrival), Patience(arrival.errand.pause))


def _copy_stream(origin: HttpsOrigin | SignedOrigin, key: str, path: Path, arrival: Arrival) -> None:
    arrival.restart()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with origin.open_whole(key) as stream:
        arrival.errand.check()  # the path may be another delivery's by now
        with path.open("wb") as file:
            while count := stream.readinto(buffer):
                arrival.add(count)
                file.write(buffer[:count])
    arrival.errand.check()  # a connection that is cut may look like the end of a file whose length nobody said


@contextmanager
def _translated(url: SourceUrl) -> Iterator[None]:
    try:
        yield
    except ObjectMissingError as error:
        raise InputMissingError(f"{url}: there is no such file") from error
    except ObjectChangedError as error:
        raise InputUnavailableError(f"{url}: the file was replaced while it was read") from error


@contextmanager
def _final() -> Iterator[None]:
    """A server that is not ours fails the job: waiting for it would have the job delivered for ever."""
    try:
        yield
    except StorageUnavailableError as error:
        raise InputUnavailableError(error.message) from error

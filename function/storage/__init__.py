"""Storage: one seam (`objects`), two stores (`s3`, `local`), opened by URL."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

from function.errors import SettingsError

if TYPE_CHECKING:
    from function.credentials import S3Account
    from function.storage.objects import ObjectStore


def open_store(
    url: str,
    *,
    account: S3Account | None = None,
    endpoint_url: str | None = None,
    stall_seconds: float = 30,
    attempts: int = 3,
) -> ObjectStore:
    """The store of `s3://bucket/prefix` or `file:///dir`; nothing is read, connected or made yet.

    Args:
        url: One of the two.
        account: Whose the bucket is; None: whose the environment says.
        endpoint_url: Where the S3 server is; None: where the account or the environment says.
        stall_seconds: After how long without a byte a connection counts as broken.
        attempts: How often a request is sent that gets no answer, or a server's error.

    Raises:
        SettingsError: The URL is neither.
    """
    scheme = url.partition("://")[0]
    if scheme == "file":
        from function.storage.local import LocalStore  # noqa: PLC0415  (see below)

        return LocalStore(url)
    if scheme == "s3":
        from function.storage.s3 import S3Store, make_client  # noqa: PLC0415  (boto3 is slow to import; not everyone needs it)

        given = _arguments(account) if account else {}
        if endpoint_url:
            given["endpoint_url"] = endpoint_url
        return S3Store(url, make_client=partial(make_client, stall_seconds=stall_seconds, attempts=attempts, **given))
    raise SettingsError(f"{url!r}: expected s3://bucket/prefix or file:///directory")


def _arguments(account: S3Account) -> dict[str, str | None]:
    """An account as `make_client` takes it."""
    return {
        "endpoint_url": account.endpoint or None,
        "access_key_id": account.access_key_id,
        "secret_access_key": account.secret_access_key,
        "session_token": account.session_token or None,
        "region": account.region or None,
    }


def probe_create(store: ObjectStore) -> None:
    """Make sure that the store has create-if-absent, on which claims and manifests rest; for start and doctor.

    Writes one object below `.comfyfn-probe/` twice, and removes it.

    Raises:
        SettingsError: The second write was not refused.
        StorageUnavailableError: The store does not answer, or we may not write to it.
    """
    key = f".comfyfn-probe/{uuid.uuid4().hex}"
    try:
        created = [store.create(key, b"{}"), store.create(key, b"{}")]
    finally:
        store.delete(key)
    if created != [True, False]:
        raise SettingsError(f"{store.url}: the store ignores `If-None-Match: *`; use one with conditional writes")

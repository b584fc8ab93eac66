"""Where a request wants its outputs uploaded, and whether it may: only where OUTPUT_URL_ALLOW says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from function.credentials import carried, find_credential, parse_url_with_login
from function.errors import InputRefusedError, InvalidRequestError
from function.handover import UploadTarget
from function.sources import check_allowed, parse_source_url
from function.storage.objects import is_key

if TYPE_CHECKING:
    from function.config import Settings
    from function.credentials import UrlCredential
    from function.http.prompt_request import ClientRequest, HttpUpload, S3Upload
    from function.sources import AllowedUrls, SourceUrl

_BLOCKS = ("s3", "hf_upload", "azure_blob_upload", "http_upload")


def parse_upload(wanted: ClientRequest, allow: tuple[AllowedUrls, ...]) -> tuple[UploadTarget | None, bool]:
    """The target of the block that counts, which is the first one in comfyui-api's order, and whether nobody waits.

    Raises:
        InvalidRequestError: It can't be used, or is not allowed; `location` names the block.
    """
    block = next((name for name in _BLOCKS if getattr(wanted, name) is not None), "")
    try:
        if block == "s3" and wanted.s3:
            return _s3_target(wanted.s3, allow), wanted.s3.asynchronous
        if block == "http_upload" and wanted.http_upload:
            return _http_target(wanted.http_upload, allow), wanted.http_upload.asynchronous
    except InputRefusedError as error:
        raise InvalidRequestError(error.message, details={"location": block}) from None
    except ValueError as error:
        raise InvalidRequestError(f"{block}: {error}", details={"location": block}) from None
    if block:
        raise InvalidRequestError(
            f"{block}: this backend is not available; use s3 or http_upload", details={"location": block}
        )
    return None, False


def with_credentials(target: UploadTarget, credentials: tuple[UrlCredential, ...], settings: Settings) -> UploadTarget:
    """The target with those of a request's credentials that are meant for it, before a password in its URL.

    Raises:
        InvalidRequestError: It is a bucket, or the credentials that are found for it would go over plain http.
    """
    url = parse_source_url(target.url_of("output.png"))
    meant = tuple(credential for credential in credentials if credential.matches(url))
    if meant and target.is_s3:
        raise InvalidRequestError(
            "s3: uploads to a bucket are made with the function's own account; credentials are for http_upload",
            details={"location": "credentials"},
        )
    target = replace(target, credentials=(*meant, *target.credentials))
    if not target.is_s3:
        _check_carried(target, url, settings)
    return target


def _check_carried(target: UploadTarget, url: SourceUrl, settings: Settings) -> None:
    """Refuse before the run what would be refused after it."""
    credential = find_credential((*target.credentials, *settings.model_url_credentials), url)
    try:
        carried(url, credential, over_http=settings.allow_private_networks, what=url.origin)
    except InputRefusedError as error:
        raise InvalidRequestError(error.message, details={"location": "http_upload"}) from None


def _s3_target(block: S3Upload, allow: tuple[AllowedUrls, ...]) -> UploadTarget:
    target = UploadTarget(f"s3://{block.bucket}/{block.prefix}")
    if parse_source_url(target.url_of("x")).host != block.bucket or not is_key(f"{block.prefix}x"):
        raise ValueError("its bucket or prefix can't be used")
    return _checked(target, allow, what="s3")


def _http_target(block: HttpUpload, allow: tuple[AllowedUrls, ...]) -> UploadTarget:
    url, login = parse_url_with_login(block.url_prefix)
    if url.scheme == "s3" or url.query or "#" in block.url_prefix:
        raise ValueError("url_prefix is an http or https URL without a query")
    target = UploadTarget(f"{url.origin}{url.path.rstrip('/')}/", login)
    return _checked(target, allow, what="http_upload")


def _checked(target: UploadTarget, allow: tuple[AllowedUrls, ...], *, what: str) -> UploadTarget:
    """The target, if every output lies in a folder that is allowed, whatever its name."""
    folder = parse_source_url(target.url_prefix[: target.url_prefix.rindex("/") + 1])
    check_allowed(folder, allow, what=what, setting="OUTPUT_URL_ALLOW")
    return target

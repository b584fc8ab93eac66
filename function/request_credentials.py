"""Credentials that come with one request, as comfyui-api takes them; for that request alone, and kept nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from function.credentials import parse_credentials
from function.errors import InvalidRequestError

if TYPE_CHECKING:
    from function.credentials import UrlCredential

_Secret = Annotated[str, Field(max_length=8192, repr=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BearerAuth(_Part):
    """`Authorization: Bearer ...`."""

    type: Literal["bearer"]
    token: _Secret


class BasicAuth(_Part):
    """`Authorization: Basic ...`."""

    type: Literal["basic"]
    username: _Secret
    password: _Secret


class HeaderAuth(_Part):
    """Any other header."""

    type: Literal["header"]
    header_name: Annotated[str, Field(max_length=256)]
    header_value: _Secret


class QueryAuth(_Part):
    """Added to the URL."""

    type: Literal["query"]
    query_param: Annotated[str, Field(max_length=256)]
    query_value: _Secret


class S3Auth(_Part):
    """The account of an `s3://` URL."""

    type: Literal["s3"]
    access_key_id: _Secret
    secret_access_key: _Secret
    session_token: _Secret = ""
    endpoint: Annotated[str, Field(max_length=2048, description="URL of an S3 server other than the function's.")] = ""
    region: Annotated[str, Field(max_length=64)] = ""


class RequestCredential(_Part):
    """What requests to some URLs carry."""

    url_pattern: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            description="Of the whole URL: `*` is any text without a slash, `**` any text, `?` one character.",
        ),
    ]
    auth: Annotated[BearerAuth | BasicAuth | HeaderAuth | QueryAuth | S3Auth, Field(discriminator="type", repr=False)]


RequestCredentials = Annotated[
    list[RequestCredential],
    Field(
        max_length=64,
        repr=False,
        description="What requests to the URLs of input files and models carry; the first match counts. Never kept.",
    ),
]
"""The `credentials` of a request."""


def to_credentials(given: list[RequestCredential]) -> tuple[UrlCredential, ...]:
    """Credentials as they are used.

    Raises:
        InvalidRequestError: A header is none that may be sent.
    """
    entries: list[Any] = [
        {"url_pattern": entry.url_pattern, "auth": entry.auth.model_dump(exclude_unset=True)} for entry in given
    ]
    try:
        return parse_credentials(entries)
    except ValueError:
        raise InvalidRequestError("credentials: a header's name or value can't be sent") from None

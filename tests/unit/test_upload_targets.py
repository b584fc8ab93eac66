"""Upload blocks of requests: what they mean, and where they may point."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from function.config import read_settings
from function.credentials import parse_credentials
from function.errors import InvalidRequestError
from function.handover import UploadTarget
from function.http.prompt_request import PromptRequest
from function.http.upload_targets import parse_upload, with_credentials
from function.sources import parse_allow_list

ALLOW = parse_allow_list("s3://exports, s3://shared/team/out, https://files.example/in, http://cache.local:8080")
SETTINGS = read_settings({})


def parsed(**blocks: Any) -> tuple[str, bool]:
    """What the URLs of outputs begin with, and whether nobody waits."""
    target, asynchronous = parse_upload(PromptRequest.model_validate({"prompt": {}, **blocks}), ALLOW)
    return target.url_prefix if target else "", asynchronous


@pytest.mark.parametrize(
    ("blocks", "prefix", "asynchronous"),
    [
        ({}, "", False),
        ({"s3": {"bucket": "exports", "prefix": ""}}, "s3://exports/", False),
        ({"s3": {"bucket": "exports", "prefix": "a b/ü-", "async": True}}, "s3://exports/a b/ü-", True),
        ({"s3": {"bucket": "shared", "prefix": "team/out/"}}, "s3://shared/team/out/", False),
        ({"http_upload": {"url_prefix": "https://files.example/in"}}, "https://files.example/in/", False),
        ({"http_upload": {"url_prefix": "https://files.example/in/a//"}}, "https://files.example/in/a/", False),
        ({"http_upload": {"url_prefix": "http://cache.local:8080", "async": True}}, "http://cache.local:8080/", True),
        (
            {"s3": {"bucket": "exports", "prefix": ""}, "hf_upload": {}, "http_upload": {"url_prefix": "x"}},
            "s3://exports/",
            False,
        ),
    ],
)
def test_a_block_says_what_urls_begin_with(blocks: dict[str, Any], prefix: str, *, asynchronous: bool) -> None:
    """The prefix of a bucket is taken literally, that of a server gets one slash; the first block counts."""
    assert parsed(**blocks) == (prefix, asynchronous)


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ({"s3": {"bucket": "other", "prefix": ""}}, "s3://other is not allowed; add s3://other to OUTPUT_URL_ALLOW"),
        ({"s3": {"bucket": "shared", "prefix": "team/out"}}, "OUTPUT_URL_ALLOW"),
        ({"s3": {"bucket": "shared", "prefix": "team/outside/"}}, "OUTPUT_URL_ALLOW"),
        ({"s3": {"bucket": "exports", "prefix": "../x"}}, "s3: its path is not plain"),
        ({"s3": {"bucket": "exports", "prefix": "/x"}}, "can't be used"),
        ({"s3": {"bucket": "exports", "prefix": "a?b"}}, "s3: "),
        ({"s3": {"bucket": "exports", "prefix": "a#b/"}}, "s3: "),
        ({"s3": {"bucket": "Exports", "prefix": ""}}, "can't be used"),
        ({"s3": {"bucket": "exports@evil", "prefix": ""}}, "s3: "),
        ({"http_upload": {"url_prefix": "https://evil.example/in"}}, "add evil.example to OUTPUT_URL_ALLOW"),
        ({"http_upload": {"url_prefix": "https://files.example/out"}}, "OUTPUT_URL_ALLOW"),
        ({"http_upload": {"url_prefix": "https://files.example/in/../out"}}, "not plain"),
        ({"http_upload": {"url_prefix": "https://files.example/in?token=t0ken"}}, "without a query"),
        ({"http_upload": {"url_prefix": "s3://exports/"}}, "an http or https URL"),
        ({"http_upload": {"url_prefix": "file:///etc"}}, "http_upload: "),
        ({"hf_upload": {"repo": "a/b"}}, "hf_upload: this backend is not available; use s3 or http_upload"),
        ({"azure_blob_upload": {"container": "c"}}, "azure_blob_upload: this backend is not available"),
    ],
)
def test_what_is_not_allowed_or_not_there_is_refused_by_name(blocks: dict[str, Any], says: str) -> None:
    """The line says what to set; a secret in it is not repeated."""
    with pytest.raises(InvalidRequestError) as error:
        parsed(**blocks)
    assert says in error.value.message
    assert error.value.details == {"location": next(iter(blocks))}
    assert "t0ken" not in error.value.message


def test_credentials_of_a_request_go_to_their_target_only() -> None:
    """Before a password in its URL; a bucket is written to with the function's own account."""
    auth = {"type": "bearer", "token": "t0ken"}
    given = parse_credentials(
        [{"url_pattern": "https://other/**", "auth": auth}, {"url_pattern": "https://files.example/**", "auth": auth}]
    )
    target = with_credentials(UploadTarget("https://files.example/in/"), given, SETTINGS)
    assert target.credentials == given[1:]
    everywhere = parse_credentials(
        [{"url_pattern": "s3://**", "auth": {"type": "s3", "access_key_id": "a", "secret_access_key": "b"}}]
    )
    with pytest.raises(InvalidRequestError, match="own account"):
        with_credentials(UploadTarget("s3://exports/"), everywhere, SETTINGS)


def test_credentials_over_plain_http_are_refused_before_the_run() -> None:
    """Those of the request, of the URL, and of the settings; ALLOW_PRIVATE_NETWORKS lets them go."""
    auth = {"type": "bearer", "token": "t0ken"}
    pattern = {"url_pattern": "http://cache.local:8080/**", "auth": auth}
    plain = UploadTarget("http://cache.local:8080/")
    (own,) = given = parse_credentials([pattern])
    operators = read_settings({"MODEL_URL_CREDENTIALS": json.dumps([pattern])})
    for target, credentials, settings in (
        (plain, given, SETTINGS),
        (replace(plain, credentials=given), (), SETTINGS),
        (plain, (), operators),
    ):
        with pytest.raises(InvalidRequestError, match="by https only") as error:
            with_credentials(target, credentials, settings)
        assert error.value.details == {"location": "http_upload"}
    assert with_credentials(plain, (), SETTINGS) == plain
    trusting = read_settings({"ALLOW_PRIVATE_NETWORKS": "true"})
    assert with_credentials(plain, given, trusting).credentials == (own,)


def test_a_password_in_a_url_is_basic_authentication() -> None:
    """As in comfyui-api; it is a credential of that target alone, and in no text."""
    wanted = PromptRequest.model_validate(
        {"prompt": {}, "http_upload": {"url_prefix": "https://me:p%40ss@files.example/in"}}
    )
    target, _ = parse_upload(wanted, ALLOW)
    assert target is not None
    assert target.url_prefix == "https://files.example/in/"
    (credential,) = target.credentials
    assert credential.headers == (("Authorization", f"Basic {base64.b64encode(b'me:p@ss').decode()}"),)
    assert "p@ss" not in repr(target)
    assert "p%40ss" not in repr(wanted)

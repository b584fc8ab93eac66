"""Credentials for URLs: what they match, and that nobody sees them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from function.config import read_settings, shown_settings
from function.credentials import find_credential, parse_credentials, read_credentials
from function.errors import SettingsError
from function.sources import parse_source_url

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cr3t"


def entry(pattern: str = "https://host/**", **auth: Any) -> dict[str, Any]:
    """One credential, by default a bearer token."""
    return {"url_pattern": pattern, "auth": auth or {"type": "bearer", "token": SECRET}}


@pytest.mark.parametrize(
    ("pattern", "url", "matches"),
    [
        ("https://huggingface.co/**", "https://huggingface.co/a/b/m.safetensors", True),
        ("https://huggingface.co/**", "https://huggingface.co.evil.example/m", False),
        ("https://*.example/**", "https://a.example/m", True),
        ("https://*.example/**", "https://evil.net/x.example/m", False),
        ("https://*.example/**", "https://evil.net?x.example/m", False),
        ("https://host/*", "https://host/m", True),
        ("https://host/*", "https://host/a/m", False),
        ("https://host/**.sft", "https://host/a/m.sft", True),
        ("https://host/**.sft", "https://host/a/m.sft?x=1", False),
        ("https://host/m?.sft", "https://host/m1.sft", True),
        ("https://host/m?.sft", "https://host/m.sft", False),
        ("https://host/m.sft", "https://host/mxsft", False),
        ("https://host:443/**", "https://host/m", False),
    ],
)
def test_patterns(pattern: str, url: str, matches: bool) -> None:  # noqa: FBT001  (an expected value)
    """One star stays within a part of the path, two go anywhere, and a pattern describes the whole URL."""
    (credential,) = parse_credentials([entry(pattern)])
    assert credential.matches(parse_source_url(url)) is matches


def test_an_account_is_for_buckets_and_everything_else_for_servers() -> None:
    """A token means nothing to a bucket, and an account nothing to a web server, whatever the pattern."""
    account = {"type": "s3", "access_key_id": "AKID", "secret_access_key": SECRET}
    token, keys = parse_credentials([entry("**"), entry("**", **account)])
    server, bucket = parse_source_url("https://host/m"), parse_source_url("s3://bucket/a/m")
    assert find_credential((keys, token), server) is token
    assert find_credential((token, keys), bucket) is keys
    assert SECRET not in f"{keys!r} {keys.account!r}"


def test_a_pattern_that_fits_in_a_thousand_ways_is_decided_in_one_pass() -> None:
    """Patterns come from outside, and one that tried every way would hold a thread for ever."""
    (credential,) = parse_credentials([entry("https://host/" + "**a" * 600)])
    assert not credential.matches(parse_source_url("https://host/" + "a" * 2_000 + "b"))


def test_the_first_match_counts() -> None:
    """A special case stands before the rule."""
    first, second = parse_credentials([entry("https://host/a/**"), entry("https://**")])
    assert find_credential((first, second), parse_source_url("https://host/a/m")) is first
    assert find_credential((first, second), parse_source_url("https://host/m")) is second
    assert find_credential((first,), parse_source_url("https://host/m")) is None


@pytest.mark.parametrize(
    "bad",
    [
        {},
        [SECRET],
        [{"url_pattern": "https://**"}],
        [{"auth": {"type": "bearer", "token": SECRET}}],
        [entry(type="bearer")],
        [entry(type="bearer", token=SECRET, more=SECRET)],
        [entry(type="bearer", token=7)],
        [entry(type="bearer", token=f"{SECRET}\r\nX: y")],
        [entry(type=SECRET, token=SECRET)],
        [entry(type="header", header_name="Host", header_value=SECRET)],
        [entry(type="header", header_name="a b", header_value=SECRET)],
        [{"url_pattern": 7, "auth": {"type": "bearer", "token": SECRET}}],
    ],
)
def test_a_bad_credential_is_one_line_without_its_secret(bad: object) -> None:
    """The line says what is expected, and quotes nothing of what was given."""
    with pytest.raises(SettingsError) as error:
        read_settings({"MODEL_URL_CREDENTIALS": json.dumps(bad)})
    assert error.value.message.startswith("MODEL_URL_CREDENTIALS=...: expected JSON")
    assert SECRET not in f"{error.value!r} {error.value.__cause__!r} {error.value.__cause__.__cause__!r}"


def test_credentials_lie_in_a_file_too(tmp_path: Path) -> None:
    """A secret that is mounted as a file is named by its path."""
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps([entry()]))
    assert read_credentials(str(path)) == read_credentials(json.dumps([entry()]))
    with pytest.raises(SettingsError, match="expected JSON"):
        read_settings({"MODEL_URL_CREDENTIALS": str(tmp_path / "missing.json")})


def test_no_credential_is_shown() -> None:
    """Neither by the settings' `repr` nor by what is printed of the environment."""
    environ = {"MODEL_URL_CREDENTIALS": json.dumps([entry()]), "PORT": "80"}
    settings = read_settings(environ)
    assert len(settings.model_url_credentials) == 1
    assert SECRET not in f"{settings} {settings.model_url_credentials}"
    assert shown_settings(environ) == ["PORT=80", "MODEL_URL_CREDENTIALS=..."]

"""URLs that callers name: taken apart strictly, allowed by the list, never shown with their secrets."""

from __future__ import annotations

import pytest

from function.errors import InputRefusedError
from function.sources import check_allowed, parse_allow_list, parse_source_url


@pytest.mark.parametrize(
    ("text", "origin", "target", "filename"),
    [
        ("https://Host.example/a/m.safetensors", "https://host.example", "/a/m.safetensors", "m.safetensors"),
        ("https://host:8443/m%20x.sft?a=1&b=%2F#part", "https://host:8443", "/m%20x.sft?a=1&b=%2F", "m x.sft"),
        ("HTTPS://host:443", "https://host", "/", ""),
        ("https://[2001:DB8::1]:8443/m", "https://[2001:db8::1]:8443", "/m", "m"),
        ("https://host/ä b.sft", "https://host", "/%C3%A4%20b.sft", "ä b.sft"),
        ("https://host/o/models%2Fm.sft?alt=media", "https://host", "/o/models%2Fm.sft?alt=media", "m.sft"),
        ("s3://bucket/models/a%20b c.sft", "s3://bucket", "/models/a%20b c.sft", "a%20b c.sft"),
    ],
)
def test_parts_of_a_url(text: str, origin: str, target: str, filename: str) -> None:
    """Host in lower case, the port only where it is unusual, no fragment; keys of S3 are literal."""
    url = parse_source_url(text)
    assert (url.origin, url.target, url.filename) == (origin, target, filename)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m.safetensors",
        "//host/m",
        "file:///etc/passwd",
        "gopher://host/m",
        "https:///m",
        "https://user@host/m",
        "https://user:s3cr3t@host/m",
        "https://good.example\\@evil.example/m",
        "https://good.example\t.evil.example/m",
        "https://host/\r\nX: y",
        "https://host:0/m",
        "https://host:99999/m",
        "https://host:s3cr3t/m",
        "https://ho st/m",
        "https://höst/m",
        "https://host./m",
        "https://[::1%25lo]/m",
        "https://[s3cr3t]/m",
        "https://host/a/../m",
        "https://host/a/%2e%2E/m",
        "https://host/a%2f..%2fm",
        "https://host/a%5c..%5cm",
        "https://host/m%00",
        "s3://bucket/a/../m",
        "s3://bucket/m?versionId=s3cr3t",
        "s3://bucket:80/m",
    ],
)
def test_urls_that_could_be_read_in_two_ways_are_refused(text: str) -> None:
    """The reason quotes nothing of the text."""
    with pytest.raises(ValueError, match=r"^its? ") as error:
        parse_source_url(text)
    assert "s3cr3t" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_query_is_never_shown() -> None:
    """Neither as text nor in a `repr`."""
    url = parse_source_url("https://host/m.sft?token=s3cr3t")
    assert "s3cr3t" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    ("entries", "url", "allowed"),
    [
        ("host.example", "https://host.example/m", True),
        ("host.example", "http://host.example/m", False),
        ("host.example", "https://host.example:8443/m", False),
        ("host.example", "https://x.host.example/m", False),
        ("host.example", "https://host.example.evil/m", False),
        ("host.example:8443", "https://host.example:8443/m", True),
        ("*.hf.co", "https://cdn.hf.co/m", True),
        ("*.hf.co", "https://a.b.hf.co/m", True),
        ("*.hf.co", "https://hf.co/m", False),
        ("*.hf.co", "https://evilhf.co/m", False),
        ("*", "https://anything.example/m", True),
        ("*", "http://anything.example/m", False),
        ("*", "s3://bucket/m", False),
        ("https://host/models", "https://host/models/m", True),
        ("https://host/models/", "https://host/models/m", True),
        ("https://host/models", "https://host/models-evil/m", False),
        ("https://host/models", "https://host/other/models/m", False),
        ("s3://bucket/models", "s3://bucket/models/m", True),
        ("s3://bucket/models", "s3://bucket/modelsx/m", False),
        ("s3://bucket", "s3://bucket/m", True),
        ("s3://bucket", "s3://bucket2/m", False),
        ("one.example, two.example,", "https://two.example/m", True),
        ("", "https://host/m", False),
    ],
)
def test_the_allow_list(entries: str, url: str, allowed: bool) -> None:  # noqa: FBT001  (an expected value)
    """Hosts mean https, stars stand for names below, prefixes for whole folders; an empty list allows nothing."""
    assert any(entry.allow(parse_source_url(url)) for entry in parse_allow_list(entries)) is allowed


@pytest.mark.parametrize(
    "entry",
    [
        "ftp://host",
        "https://user@host",
        "https://host?x=1",
        "a*b",
        "h*.example",
        "*host",
        "s3://*",
        "host/../x",
        "https://",
    ],
)
def test_a_bad_entry(entry: str) -> None:
    """The line says what entries look like."""
    with pytest.raises(ValueError, match="a comma list of hosts"):
        parse_allow_list(entry)


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        ("https://host/p?s3cr3t", "add host to MODEL_URL_ALLOW"),
        ("https://host:8443/p", "add host:8443 to MODEL_URL_ALLOW"),
        ("s3://bucket/p", "add s3://bucket to MODEL_URL_ALLOW"),
    ],
)
def test_what_is_not_allowed_names_the_setting_and_the_value_it_lacks(url: str, needed: str) -> None:
    """Whoever may change the settings can mend it."""
    with pytest.raises(InputRefusedError, match=needed) as error:
        check_allowed(parse_source_url(url), (), what="node 4, input x")
    assert error.value.message.startswith("node 4, input x: ")
    assert "s3cr3t" not in error.value.message

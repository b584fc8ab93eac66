"""The warm-up's workflow by URL: from a real https server and from a real S3 server."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from function.errors import StorageUnavailableError
from function.sources import parse_source_url
from function.storage.https import FetchRules
from function.warmup import fetch_workflow
from tests.support.https import HttpsServer, ServedFile, make_tls, on_this_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.workflow import Workflow
    from tests.support.storage import S3Server

WORKFLOW = {"1": {"class_type": "X", "inputs": {}}}
SECRET = "s3cr3t"


@pytest.fixture
def server() -> Iterator[HttpsServer]:
    """A server with one workflow."""
    with HttpsServer() as server:
        server.files["/w.json"] = ServedFile(json.dumps(WORKFLOW).encode())
        yield server


def fetched(url: str, *, private: bool = True) -> Workflow:
    """What is behind a URL, with nothing in MODEL_URL_ALLOW."""
    rules = FetchRules(allow_private=private, resolve=on_this_machine, make_tls=make_tls)
    return fetch_workflow(parse_source_url(url), rules=rules, max_bytes=1000)


def test_the_named_url_needs_no_other_setting(server: HttpsServer) -> None:
    """The operator named it; the query goes along."""
    assert fetched(server.url(f"/w.json?key={SECRET}")) == WORKFLOW
    assert server.requests[0].target == f"/w.json?key={SECRET}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 999, "is not JSON"),
        (b"[]", "expected an object of node id to node"),
        (b"{}", "no output node"),
        (b'{"nodes": [], "links": []}', "API"),
        (b" " * 1001, "larger than 1000 bytes"),
    ],
)
def test_what_is_no_workflow_is_said_and_may_be_mended(server: HttpsServer, content: bytes, reason: str) -> None:
    """One line that names setting and fault, without the query; it counts as a failure that may pass."""
    server.files["/w.json"] = ServedFile(content)
    with pytest.raises(StorageUnavailableError, match=f"^WARMUP_PROMPT_URL: .*{reason}") as raised:
        fetched(server.url(f"/w.json?key={SECRET}"))
    assert SECRET not in raised.value.message


def test_a_missing_document(server: HttpsServer) -> None:
    """The line has the URL."""
    with pytest.raises(StorageUnavailableError, match=rf"{server.port}/none.json: there is no such file"):
        fetched(server.url("/none.json"))


def test_a_redirect_elsewhere_is_guarded(server: HttpsServer) -> None:
    """Only the named URL is allowed by itself; the line names setting and value."""
    server.redirects["/w.json"] = server.url("/other.json", "127.0.0.1")
    with pytest.raises(StorageUnavailableError, match=rf"add 127.0.0.1:{server.port} to MODEL_URL_ALLOW"):
        fetched(server.url("/w.json"))


def test_a_private_address_is_guarded(server: HttpsServer) -> None:
    """Without ALLOW_PRIVATE_NETWORKS nothing is sent."""
    with pytest.raises(StorageUnavailableError, match="ALLOW_PRIVATE_NETWORKS"):
        fetched(server.url("/w.json"), private=False)
    assert not server.requests


def test_a_document_in_s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read with the credentials of the process; one that isn't there is said."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.make_bucket()
    with closing(s3_server.make_client()) as client:
        client.put_object(Bucket=bucket, Key="warm up/w.json", Body=json.dumps(WORKFLOW).encode())
    assert fetched(f"s3://{bucket}/warm up/w.json") == WORKFLOW
    with pytest.raises(StorageUnavailableError, match=f"WARMUP_PROMPT_URL: s3://{bucket}/none.json: there is no such"):
        fetched(f"s3://{bucket}/none.json")

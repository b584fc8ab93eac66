"""Files of other people's servers, read from a real https server: what is fetched, what is refused, what is sent."""

from __future__ import annotations

import logging
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from function.credentials import S3Account, parse_credentials
from function.errors import InputRefusedError, StorageUnavailableError
from function.storage.objects import ObjectChangedError, ObjectMissingError, TransientStorageError
from function.storage.origins import open_origin
from function.storage.signed import SignedOrigin
from tests.support.https import HttpsServer, ServedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.storage.https import HttpsOrigin

CONTENT = bytes(range(256)) * 40
SECRET = "s3cr3t"


@pytest.fixture
def server() -> Iterator[HttpsServer]:
    """A server with one model."""
    with HttpsServer() as server:
        server.files["/m.safetensors"] = ServedFile(CONTENT)
        yield server


def read(origin: HttpsOrigin, key: str, start: int, length: int, etag: str) -> bytes:
    """A range, read to its end in small pieces."""
    content = b""
    buffer = memoryview(bytearray(100))
    with origin.open_range(key, start, length, etag=etag) as stream:
        while count := stream.readinto(buffer):
            content += buffer[:count]
    return content


def credentials(pattern: str, **auth: str) -> tuple[Any, ...]:
    """One credential, by default a bearer token."""
    return parse_credentials([{"url_pattern": pattern, "auth": auth or {"type": "bearer", "token": SECRET}}])


def test_a_file_is_described_and_read_by_ranges(server: HttpsServer) -> None:
    """HEAD tells length and ETag; every range of it is what the server has; nothing is compressed on the way."""
    origin = server.origin()
    info = origin.head("m.safetensors")
    assert (info.size_bytes, info.etag) == (len(CONTENT), "v1")
    assert read(origin, "m.safetensors", 0, 300, "v1") == CONTENT[:300]
    assert read(origin, "m.safetensors", 9_000, len(CONTENT) - 9_000, "v1") == CONTENT[9_000:]
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}
    assert {request.headers["host"] for request in server.requests} == {f"models.example:{server.port}"}


def test_where_head_is_refused_the_first_byte_is_asked_for(server: HttpsServer) -> None:
    """A presigned URL answers HEAD with 403."""
    server.files["/m.safetensors"].head_status = 403
    assert server.origin().head("m.safetensors").size_bytes == len(CONTENT)
    assert [request.method for request in server.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"v1"'}, {"ETag": "bare"}])
def test_without_a_strong_etag_date_and_length_identify_a_file(server: HttpsServer, tag: dict[str, str]) -> None:
    """The identity is the same until the file is replaced."""
    file = server.files["/m.safetensors"]
    file.headers = {"Last-Modified": "Tue, 01 Jul 2025 10:00:00 GMT", **tag}
    origin = server.origin()
    identity = origin.head("m.safetensors").etag
    assert read(origin, "m.safetensors", 5, 10, identity) == CONTENT[5:15]
    file.headers["Last-Modified"] = "Tue, 01 Jul 2025 10:00:01 GMT"
    with pytest.raises(ObjectChangedError):
        read(origin, "m.safetensors", 5, 10, identity)


def test_a_file_without_any_identity_is_refused(server: HttpsServer) -> None:
    """It could not be told whether two ranges belong together."""
    server.files["/m.safetensors"].headers = {}
    with pytest.raises(InputRefusedError, match="neither a strong ETag nor Last-Modified"):
        server.origin().head("m.safetensors")


def test_a_replaced_file_is_noticed_by_its_etag(server: HttpsServer) -> None:
    """Also by a server that ignores conditions."""
    origin = server.origin()
    server.files["/m.safetensors"].headers = {"ETag": '"v2"'}
    with pytest.raises(ObjectChangedError):
        read(origin, "m.safetensors", 0, 10, "v1")


def test_a_missing_file(server: HttpsServer) -> None:
    """404 is an object that is not there."""
    with pytest.raises(ObjectMissingError):
        server.origin().head("other.safetensors")


def test_a_body_that_is_cut_off_ends_early(server: HttpsServer) -> None:
    """The stream says how far it came: the caller goes on from there, and never takes half for the whole."""
    server.files["/m.safetensors"].cut_bytes = 7
    assert read(server.origin(), "m.safetensors", 0, 300, "v1") == CONTENT[:293]


def test_a_body_that_is_longer_than_the_range_is_read_no_further(server: HttpsServer) -> None:
    """What a server sends beyond it never gets into a file."""
    server.files["/m.safetensors"].surplus = b"more"
    assert read(server.origin(), "m.safetensors", 0, 300, "v1") == CONTENT[:300]


def test_a_server_without_ranges_serves_what_is_read_in_one_piece(server: HttpsServer) -> None:
    """The whole is taken, a part is refused in one line, never guessed."""
    server.files["/m.safetensors"].ranges = False
    origin = server.origin()
    assert read(origin, "m.safetensors", 0, len(CONTENT), "v1") == CONTENT
    with pytest.raises(InputRefusedError, match="has no ranges"):
        read(origin, "m.safetensors", 0, 10, "v1")


@pytest.mark.parametrize("span", ["bytes 1-10/10240", "bytes 0-8/10240", "bytes 0-9/*", "bytes */10240", "0-9", ""])
def test_another_range_than_the_wanted_one_is_refused(server: HttpsServer, span: str) -> None:
    """A server that sends other bytes than asked for would make a wrong file."""
    server.files["/m.safetensors"].content_range = span or " "
    with pytest.raises(InputRefusedError):
        read(server.origin(), "m.safetensors", 0, 10, "v1")


def test_compressed_content_is_refused(server: HttpsServer) -> None:
    """Ranges of it would be ranges of something else."""
    server.files["/m.safetensors"].headers["Content-Encoding"] = "gzip"
    with pytest.raises(InputRefusedError, match="compresses"):
        read(server.origin(), "m.safetensors", 0, 10, "v1")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, InputRefusedError),
        (403, InputRefusedError),
        (410, ObjectMissingError),
        (412, ObjectChangedError),
        (418, StorageUnavailableError),
        (429, TransientStorageError),
        (500, TransientStorageError),
        (503, TransientStorageError),
    ],
)
def test_what_a_status_means(server: HttpsServer, status: int, error: type[Exception]) -> None:
    """Refused for good, gone, changed, or worth another try."""
    server.files["/m.safetensors"].status = status
    with pytest.raises(error):
        read(server.origin(), "m.safetensors", 0, 10, "v1")


def test_redirects_are_followed_and_remembered(server: HttpsServer) -> None:
    """Ranges go straight to where HEAD ended, and start anew once they are turned away there."""
    server.redirects = {"/a": "b?x=1", "/b": server.url("/m.safetensors", "cdn.example")}
    origin = server.origin()
    assert origin.head("a").size_bytes == len(CONTENT)
    assert read(origin, "a", 0, 10, "v1") == CONTENT[:10]
    assert [request.target for request in server.requests] == ["/a", "/b?x=1", "/m.safetensors", "/m.safetensors"]
    assert server.requests[-1].headers["host"] == f"cdn.example:{server.port}"
    server.files["/n"] = server.files.pop("/m.safetensors")
    server.redirects["/a"] = server.url("/n")
    assert read(origin, "a", 0, 10, "v1") == CONTENT[:10]


def test_a_redirect_that_leads_elsewhere_now_is_noticed(server: HttpsServer) -> None:
    """HEAD begins anew each time, so that a link to the newest file gives the newest file."""
    server.redirects["/newest"] = "/m.safetensors"
    origin = server.origin()
    assert origin.head("newest").etag == "v1"
    server.files["/v2.safetensors"] = ServedFile(CONTENT, {"ETag": '"v2"'})
    server.redirects["/newest"] = "/v2.safetensors"
    assert origin.head("newest").etag == "v2"


def test_redirects_end_after_five(server: HttpsServer) -> None:
    """A server that redirects in circles is told so."""
    server.redirects["/a"] = "/a"
    with pytest.raises(InputRefusedError, match="more than 5 redirects"):
        server.origin().head("a")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://other.example:{port}/m.safetensors", "add other.example:{port} to MODEL_URL_ALLOW"),
        ("http://models.example:{port}/m.safetensors", "to MODEL_URL_ALLOW"),
        ("https://169.254.169.254/latest/meta-data", "metadata"),
        ("https://[fe80::1]/", "link-local"),
        ("https://user:pass@models.example:{port}/", "user name or password"),
        ("file:///etc/passwd", "neither with https"),
        ("s3://bucket/key", "nowhere that could be followed"),
        ("", "nowhere that could be followed"),
    ],
)
def test_redirects_to_where_they_may_not_lead(server: HttpsServer, location: str, says: str) -> None:
    """Each step is checked as the first one is, before anything is asked there."""
    server.redirects["/a"] = location.format(port=server.port)
    allow = f"models.example:{server.port}", "169.254.169.254", "[fe80::1]"
    origin = server.origin(*allow, resolve=lambda host, _port: [host if host[0] in "1f" else "127.0.0.1"])
    with pytest.raises(InputRefusedError, match=says.format(port=server.port)):
        origin.head("a")
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.0.0.1", "::1"])
def test_a_name_that_resolves_to_a_private_address_is_refused(server: HttpsServer, address: str) -> None:
    """Nothing is sent to it, and the address is not told."""
    origin = server.origin(allow_private=False, resolve=lambda _host, _port: ["93.184.215.14", address])
    with pytest.raises(InputRefusedError, match="private address") as error:
        origin.head("m.safetensors")
    assert address not in error.value.message
    assert server.requests == []


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(server: HttpsServer) -> None:
    """A name that resolves to another address the second time is looked up once for each request."""
    answers = iter(["127.0.0.1"])
    origin = server.origin(resolve=lambda _host, _port: [next(answers)])
    assert origin.head("m.safetensors").size_bytes == len(CONTENT)
    assert next(answers, None) is None


def test_the_next_address_is_tried_when_one_does_not_answer(server: HttpsServer) -> None:
    """A host with a dead address still serves."""
    origin = server.origin(resolve=lambda _host, _port: ["127.0.0.2", "127.0.0.1"])
    assert origin.head("m.safetensors").size_bytes == len(CONTENT)


def test_the_certificate_must_be_the_hosts(server: HttpsServer) -> None:
    """Neither an unknown issuer nor another name is accepted, and it is not tried again."""
    strangers = server.origin(make_tls=ssl.create_default_context)
    other_name = server.origin(host="models.invalid")
    for origin in (strangers, other_name):
        with pytest.raises(StorageUnavailableError, match="certificate") as error:
            origin.head("m.safetensors")
        assert not isinstance(error.value, TransientStorageError)
    assert server.requests == []


def test_nobody_listens() -> None:
    """A refused connection is worth another try."""
    with HttpsServer() as gone:
        origin = gone.origin()
    with pytest.raises(TransientStorageError, match="no connection"):
        origin.head("m.safetensors")


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ({"type": "bearer", "token": SECRET}, "authorization", f"Bearer {SECRET}"),
        ({"type": "basic", "username": "me", "password": SECRET}, "authorization", "Basic bWU6czNjcjN0"),
        ({"type": "header", "header_name": "X-Key", "header_value": SECRET}, "x-key", SECRET),
    ],
)
def test_credentials_are_sent_where_their_pattern_says(
    server: HttpsServer, auth: dict[str, str], header: str, value: str
) -> None:
    """To the URLs of the pattern, and to no other."""
    server.files["/open/m"] = ServedFile(CONTENT)
    origin = server.origin(credentials=credentials(server.url("/m.*"), **auth))
    origin.head("m.safetensors")
    origin.head("open/m")
    assert [request.headers.get(header) for request in server.requests] == [value, None]


def test_credentials_in_the_query(server: HttpsServer) -> None:
    """They are added to what the URL has."""
    auth = {"type": "query", "query_param": "sig", "query_value": "a b&c"}
    origin = server.origin(credentials=credentials("https://**", **auth))
    origin.head("m.safetensors")
    origin.head("m.safetensors?v=1")
    assert [request.target for request in server.requests] == [
        "/m.safetensors?sig=a+b%26c",
        "/m.safetensors?v=1&sig=a+b%26c",
    ]


def test_credentials_do_not_follow_a_redirect_to_another_host(server: HttpsServer) -> None:
    """Not even if their pattern fits it too; nor do later ranges that start there carry them."""
    server.redirects["/a"] = server.url("/m.safetensors", "cdn.example")
    server.redirects["/b"] = "/m.safetensors"
    origin = server.origin(credentials=credentials("https://**"))
    origin.head("a")
    read(origin, "a", 0, 10, "v1")
    origin.head("b")
    sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == [f"Bearer {SECRET}", None, None, f"Bearer {SECRET}", f"Bearer {SECRET}"]


@pytest.mark.parametrize("path", ["/m.safetensors", "/gone", "/circle", "/away", "/broken"])
def test_no_secret_is_in_any_error_or_log_line(
    server: HttpsServer, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """Neither those of the URL's query nor those of the credentials, however it ends."""
    caplog.set_level(logging.DEBUG)
    server.files["/m.safetensors"].headers = {}
    server.files["/broken"] = ServedFile(CONTENT, status=500, head_status=500)
    server.redirects = {"/circle": f"/circle?token={SECRET}", "/away": f"https://evil.example/{SECRET}?{SECRET}"}
    origin = server.origin(f"*.example:{server.port}", credentials=credentials("https://**"))
    with pytest.raises((InputRefusedError, StorageUnavailableError, ObjectMissingError)) as error:
        origin.head(f"{path[1:]}?token={SECRET}")
    shown = f"{error.value} {error.value!r} {origin.url} {origin.object_url(f'x?{SECRET}')} {caplog.text}"
    assert SECRET not in shown
    assert SECRET in server.requests[0].target
    assert SECRET not in repr(origin._rules)


def test_proxies_of_the_environment_are_not_used(server: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name again, where nobody checks the address."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert server.origin().head("m.safetensors").size_bytes == len(CONTENT)


def test_origins_are_opened_by_their_url(server: HttpsServer) -> None:
    """What a process tells another one by URL and key is the same file there."""
    rules = server.origin()._rules
    origin = open_origin(server.origin().url, rules=rules)
    assert origin.head("m.safetensors").etag == "v1"
    assert origin.object_url("m.safetensors?x") == server.url("/m.safetensors")


class Signer:
    """A bucket behind a server, each of whose signatures is another one."""

    def __init__(self, server: HttpsServer) -> None:
        self._server = server
        self._numbers = count(1)

    def presign(self, key: str, *, expires_seconds: int) -> str:
        """A URL of the server."""
        return self._server.url(f"/{key}?signature={next(self._numbers)}&seconds={expires_seconds}")


def test_a_signed_url_is_replaced_before_it_expires(server: HttpsServer) -> None:
    """An origin that is kept for days goes on reading its bucket; a URL is used until half of its time is over."""
    hours = [0.0]
    account = S3Account("key", SECRET, endpoint=server.url(""))
    origin = SignedOrigin(
        "s3://bucket",
        account,
        rules=server.origin()._rules,
        open_store=lambda *_, **__: Signer(server),
        clock=lambda: hours[0] * 3600,
    )
    for hours[0] in (0.0, 2.9, 3.0, 7.0):
        origin.head("m.safetensors")
    signatures = [request.target.partition("?")[2] for request in server.requests]
    assert signatures == [f"signature={number}&seconds=21600" for number in (1, 1, 2, 3)]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_read_in_which_a_thread_waits_can_be_ended(scheme: str) -> None:
    """However long the server may be silent; nothing of what it sends later is taken for the file's."""
    hold = threading.Event()
    with HttpsServer(scheme) as server, ThreadPoolExecutor(1) as pool:
        server.files["/m.safetensors"] = ServedFile(CONTENT, hold=hold)
        origin = server.origin(f"{scheme}://*:{server.port}", read_seconds=3600.0)
        with origin.open_range("m.safetensors", 0, 100, etag="v1") as stream:
            waiting = pool.submit(stream.readinto, memoryview(bytearray(100)))
            stream.abort()
            assert waiting.exception(30) or waiting.result() < 2
            hold.set()
            with suppress(TransientStorageError):
                assert stream.readinto(memoryview(bytearray(100))) == 0


def test_a_small_file_is_read_whole(server: HttpsServer) -> None:
    """One request, through a redirect, also where nothing says what identifies the file."""
    server.files["/w.json"] = ServedFile(b"{}", headers={})
    server.redirects["/get"] = server.url("/w.json")
    assert server.origin().get("get?key=1", max_bytes=2) == b"{}"
    assert [request.method for request in server.requests] == ["GET", "GET"]


@pytest.mark.parametrize(
    ("file", "error", "reason"),
    [
        (ServedFile(b"123"), StorageUnavailableError, "larger than 2 bytes"),
        (ServedFile(b"12", cut_bytes=1), TransientStorageError, "broke off"),
        (ServedFile(b"12", status=503), TransientStorageError, "503"),
        (ServedFile(b"12", status=403), InputRefusedError, "403"),
        (ServedFile(b"12", status=404), ObjectMissingError, "no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_small_file_that_can_t_be_read_whole(
    server: HttpsServer, file: ServedFile, error: type[Exception], reason: str
) -> None:
    """Too large, cut, refused or away: the error says which, and never more than `max_bytes` are kept."""
    server.files["/w.json"] = file
    with pytest.raises(error, match=reason):
        server.origin().get("w.json", max_bytes=2)

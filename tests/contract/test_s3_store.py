"""What only an S3 store does: paging, presigned URLs, refusals of the server, broken connections."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
import urllib3

from function.credentials import S3Account
from function.errors import SettingsError, StorageUnavailableError
from function.storage import open_store, probe_create
from function.storage.objects import ObjectChangedError, TransientStorageError
from function.storage.s3 import S3Store
from tests.support.https import HttpsServer, ServedFile
from tests.support.proxy import CONFLICT, HttpProxy, Seen
from tests.support.storage import FlakyProxy, S3Server, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

KIB = 1024
CONTINUE_BYTES = len(b"HTTP/1.1 100 Continue\r\n\r\n")


@contextmanager
def scripted_server(statuses: list[int], code: str = "") -> Iterator[str]:
    """A server on a free port that answers each request with the next status (the last one for ever); its URL."""
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = left.pop(0) if len(left) > 1 else left[0]
            error = status >= 400
            body = f"<Error><Code>{code}</Code><Message>secret text</Message></Error>".encode() if error else b""
            self.send_response(status)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_DELETE = answer  # noqa: N815  (names that the base class looks for)

        def log_message(self, *_: object) -> None:
            """Tests read no access log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def plain_server(s3_server: S3Server) -> Iterator[tuple[dict[str, ServedFile], S3Store]]:
    """Files by path on a server that knows no conditions, and the bucket `bucket` on it."""
    with (
        HttpsServer("http") as server,
        s3_server.store("s3://bucket", endpoint_url=server.url("", "127.0.0.1")) as store,
    ):
        yield server.files, store


def test_listing_pages(s3_store: S3Store) -> None:
    """A listing goes on after the thousand objects of its first page."""
    keys = [f"jobs/{n:04}" for n in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3_store.put(key, b""), keys))
    assert [info.key for info in s3_store.list_objects("jobs/")] == keys


def test_listing_leaves_out_folder_markers(s3_store: S3Store, s3_server: S3Server, s3_bucket: str) -> None:
    """The empty `folder/` objects that S3 consoles make are not listed, as no key names them."""
    s3_store.put("folder/file", b"")
    prefix = s3_store.url.removeprefix(f"s3://{s3_bucket}/")
    client = s3_server.make_client()
    client.put_object(Bucket=s3_bucket, Key=f"{prefix}/marker/", Body=b"")
    client.close()
    assert [info.key for info in s3_store.list_objects()] == ["folder/file"]


def test_a_prefix_is_a_store_of_its_own(s3_server: S3Server, s3_store: S3Store) -> None:
    """A store doesn't see what lies beside its prefix, even if the names begin alike."""
    with s3_server.store(f"{s3_store.url}2") as other:
        other.put("x", b"")
        assert list(s3_store.list_objects()) == []
        assert [info.key for info in other.list_objects()] == ["x"]


def test_presigned_url(s3_store: S3Store) -> None:
    """A presigned URL gives the object to anyone, and no other object."""
    s3_store.put("a b+\u00e4.png", b"pixels", media_type="image/png")
    url = s3_store.presign("a b+\u00e4.png", expires_seconds=60)
    with urllib3.PoolManager() as http:
        answer = http.request("GET", url)
        assert (answer.status, answer.data, answer.headers["Content-Type"]) == (200, b"pixels", "image/png")
        assert http.request("GET", url.replace("a%20b", "other")).status == 403


def test_settings_come_from_the_environment(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint, region and credentials are those of boto3's variables when the store is first used."""
    store = open_store(f"s3://{s3_bucket}")
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    assert isinstance(store, S3Store)
    probe_create(store)
    store.close()


@pytest.mark.parametrize(
    ("regions", "own", "signed_for"),
    [
        ({"AWS_REGION": "eu-central-1"}, "", "eu-central-1"),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "", "eu-west-1"),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "us-west-2", "us-west-2"),
    ],
)
def test_regions(monkeypatch: pytest.MonkeyPatch, regions: dict[str, str], own: str, signed_for: str) -> None:
    """Links are signed for the region of the account, else of AWS_DEFAULT_REGION, else of AWS_REGION."""
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", **regions}.items():
        monkeypatch.setenv(name, value)
    account = S3Account(access_key_id="id", secret_access_key="secret", region=own) if own else None
    store = open_store("s3://bucket", account=account)
    assert f"%2F{signed_for}%2Fs3%2F" in store.presign("a.png", expires_seconds=60)


def test_wrong_secret(s3_server: S3Server, s3_store: S3Store) -> None:
    """A wrong secret is named by its setting, and shown nowhere."""
    with s3_server.store(s3_store.url, secret_access_key="wrong-secret") as store:
        with pytest.raises(StorageUnavailableError, match="AWS_SECRET_ACCESS_KEY") as caught:
            store.put("x", b"")
        with pytest.raises(StorageUnavailableError, match="AWS_SECRET_ACCESS_KEY"):
            store.head("x")
    assert store.object_url("x") in caught.value.message
    assert "\n" not in caught.value.message
    assert "wrong-secret" not in caught.value.message


def test_unknown_access_key(s3_server: S3Server, s3_store: S3Store) -> None:
    """An unknown access key is named by its setting."""
    with (
        s3_server.store(s3_store.url, access_key_id="nobody") as store,
        pytest.raises(StorageUnavailableError, match="AWS_ACCESS_KEY_ID"),
    ):
        list(store.list_objects())


def test_missing_bucket(s3_server: S3Server) -> None:
    """A missing bucket is said to be missing, with the store's URL."""
    with (
        s3_server.store("s3://no-such-bucket/prefix") as store,
        pytest.raises(StorageUnavailableError, match=r"^s3://no-such-bucket/prefix: the bucket does not exist"),
    ):
        list(store.list_objects())


def test_endpoint_down(s3_server: S3Server, s3_store: S3Store) -> None:
    """A server that isn't there is an error in one line that names the setting to check."""
    with (
        s3_server.store(s3_store.url, endpoint_url=f"http://127.0.0.1:{free_port()}") as store,
        pytest.raises(StorageUnavailableError, match="no connection: check AWS_ENDPOINT_URL"),
    ):
        store.head("x")


def test_endpoint_is_no_url(s3_server: S3Server, s3_store: S3Store) -> None:
    """An endpoint that is no URL is an error that names the setting."""
    with (
        s3_server.store(s3_store.url, endpoint_url="localhost:9000") as store,
        pytest.raises(StorageUnavailableError, match="AWS_ENDPOINT_URL"),
    ):
        store.head("x")


def test_create_whose_answer_is_lost(s3_server: S3Server, s3_store: S3Store) -> None:
    """A create that won, but whose answer was lost, finds its own object when it is sent again, and has won."""
    with (
        FlakyProxy(s3_server.endpoint_url, cuts=[CONTINUE_BYTES]) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
    ):
        assert store.create("claim", b"mine")
        assert proxy.connections > 1
        assert not store.create("claim", b"mine")
    assert s3_store.get("claim", max_bytes=4) == b"mine"


def test_create_that_loses_with_a_lost_answer(s3_server: S3Server, s3_store: S3Store) -> None:
    """A create that is sent again and finds somebody else's object, however equal, has lost."""
    s3_store.create("claim", b"equal")
    with (
        FlakyProxy(s3_server.endpoint_url, cuts=[CONTINUE_BYTES]) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
    ):
        assert not store.create("claim", b"equal")


def test_broken_bodies(s3_server: S3Server, s3_store: S3Store, tmp_path: Path) -> None:
    """Downloads and reads whose connection breaks again and again go on where they stopped."""
    data = os.urandom(600 * KIB)
    etag = s3_store.put("model", data).etag
    with (
        FlakyProxy(s3_server.endpoint_url, cuts=[200 * KIB] * 3) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
    ):
        store.download("model", tmp_path / "model", etag=etag)
        assert proxy.connections > 1
    with (
        FlakyProxy(s3_server.endpoint_url, cuts=[200 * KIB] * 3) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
    ):
        assert store.get("model", max_bytes=len(data)) == data
    assert (tmp_path / "model").read_bytes() == data


def test_body_that_never_arrives(s3_server: S3Server, s3_store: S3Store, tmp_path: Path) -> None:
    """A download whose connection always breaks before it gets on is given up."""
    etag = s3_store.put("model", os.urandom(600 * KIB)).etag
    with (
        FlakyProxy(s3_server.endpoint_url, cuts=[2 * KIB] * 99) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
        pytest.raises(StorageUnavailableError, match="broke off"),
    ):
        store.download("model", tmp_path / "model", etag=etag)


def test_store_without_create_if_absent(s3_server: S3Server) -> None:
    """A store that answers every write with success is refused in one line."""
    with (
        scripted_server([200]) as endpoint,
        s3_server.store("s3://bucket", endpoint_url=endpoint) as store,
        pytest.raises(SettingsError, match=r"^s3://bucket: the store ignores `If-None-Match: \*`"),
    ):
        probe_create(store)


def test_conflicting_creates_are_repeated(s3_server: S3Server) -> None:
    """A create that S3 answers with 409, as it does while another write is under way, is sent again."""
    with (
        scripted_server([409, 409, 200], "ConditionalRequestConflict") as endpoint,
        s3_server.store("s3://bucket", endpoint_url=endpoint) as store,
    ):
        assert store.create("claim", b"")


def test_a_create_that_conflicts_with_itself(s3_server: S3Server, s3_store: S3Store) -> None:
    """A write whose answer was lost, and that is answered with 409 when it is sent again, has won all the same."""
    conflict = [True]

    def answer_conflict(seen: Seen) -> str:
        return CONFLICT if seen.method == "PUT" and conflict and conflict.pop() else ""

    with (
        HttpProxy([s3_server.endpoint_url], after=answer_conflict) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
    ):
        assert store.create("claim", b"mine")
        conflict.append(True)
        assert not store.create("claim", b"mine")


def test_a_listing_is_not_dated_later_than_it_was_taken(s3_server: S3Server, s3_store: S3Store) -> None:
    """What was written while a slow answer was under way is not in it, so that it must not look older than it is."""
    s3_store.put("x", b"")

    def wait(_seen: Seen) -> str:
        time.sleep(1.5)
        return ""

    with (
        HttpProxy([s3_server.endpoint_url], before=wait) as proxy,
        s3_server.store(s3_store.url, endpoint_url=proxy.url) as store,
    ):
        asked_at = datetime.now(UTC)
        assert store.list_page().taken_at <= asked_at


def test_creates_that_go_on_conflicting(s3_server: S3Server) -> None:
    """A create that is answered with 409 again and again is given up."""
    with (
        scripted_server([409], "ConditionalRequestConflict") as endpoint,
        s3_server.store("s3://bucket", endpoint_url=endpoint) as store,
        pytest.raises(StorageUnavailableError, match="kept colliding"),
    ):
        store.create("claim", b"")


def test_failing_server(s3_server: S3Server) -> None:
    """A server that fails is an error without the server's own words."""
    with (
        scripted_server([503], "SlowDown") as endpoint,
        s3_server.store("s3://bucket", endpoint_url=endpoint) as store,
        pytest.raises(StorageUnavailableError, match="overloaded") as caught,
    ):
        store.put("x", b"")
    assert "secret text" not in caught.value.message


def test_a_gateway_that_fails(s3_server: S3Server) -> None:
    """An answer without any code of S3's is judged by its status."""
    with (
        scripted_server([502]) as endpoint,
        s3_server.store("s3://bucket", endpoint_url=endpoint, attempts=1) as store,
        pytest.raises(TransientStorageError, match="overloaded"),
    ):
        store.put("x", b"")


def test_a_server_without_if_match(s3_server: S3Server, tmp_path: Path) -> None:
    """What such a server sends of another content than the one that was asked for is not taken for it."""
    with plain_server(s3_server) as (files, store):
        files["/bucket/model"] = ServedFile(b"0123456789", headers={"ETag": '"new"'})
        with pytest.raises(ObjectChangedError):
            store.get_range("model", 0, 10, etag="old")
        with pytest.raises(ObjectChangedError):
            store.download("model", tmp_path / "model", etag="old")
        assert store.get_range("model", 5, 100, etag="new") == b"56789"


def test_a_server_without_ranges(s3_server: S3Server) -> None:
    """Other bytes than those that were asked for are refused."""
    with plain_server(s3_server) as (files, store):
        files["/bucket/model"] = ServedFile(b"0123456789", headers={"ETag": '"new"'}, ranges=False)
        with pytest.raises(StorageUnavailableError, match="ignores the Range header"):
            store.get_range("model", 5, 5, etag="new")


def test_a_store_connects_when_it_is_used(s3_server: S3Server, s3_bucket: str) -> None:
    """Making a store makes no client; using it makes one, once."""
    made = []

    def make_client() -> S3Client:
        made.append(s3_server.make_client())
        return made[-1]

    store = S3Store(f"s3://{s3_bucket}/lazy", make_client=make_client)
    assert made == []
    store.put("x", b"")
    store.delete("x")
    assert len(made) == 1
    store.close()

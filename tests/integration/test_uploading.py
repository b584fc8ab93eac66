"""Uploads to where senders want their outputs: real buckets and real HTTP servers."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from function.credentials import parse_credentials
from function.errors import JobCancelledError, UploadFailedError
from function.handover import UploadTarget
from function.outputs.files import OutputFolder
from function.outputs.uploading import Uploader
from function.storage.connecting import ConnectionRules
from function.storage.s3 import S3Store
from tests.support.outputs import LARGE_FILE, small_image, written
from tests.support.storage import ignore_sleep
from tests.support.webhooks import HERE, Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

    from function.engine.results import EngineFile
    from function.outputs.reading import EngineFileSource
    from tests.support.storage import S3Server


def nothing() -> None:
    """A job that nobody cancels."""


def send(uploader: Uploader, url_prefix: str, directory: Path, *names: str, content: bytes = b"") -> None:
    """Write files as job `j1`, and upload them."""
    places = [name.rpartition("/") for name in names]
    files = [written(directory, name, f"j1/{folder}".rstrip("/"), content=content) for folder, _, name in places]
    uploader.send(UploadTarget(url_prefix), OutputFolder(directory, "j1"), files, check=nothing)


def test_put_sends_each_file_with_its_length_and_type(tmp_path: Path) -> None:
    """Names are percent-encoded, folders stay folders, and the answer's body does not matter."""
    with Receiver(201) as receiver:
        send(Uploader(HERE), f"http://127.0.0.1:{receiver.port}/in/", tmp_path, "a b%ü.png", "sub/a.webm")
        first, second = receiver.requests
    assert (first.method, first.target) == ("PUT", "/in/a%20b%25%C3%BC.png")
    assert second.target == "/in/sub/a.webm"
    assert (first.headers["content-type"], second.headers["content-type"]) == ("image/png", "video/webm")
    assert first.headers["content-length"] == str(len(first.body))
    assert first.body == small_image()
    assert "transfer-encoding" not in first.headers


def test_credentials_go_to_the_urls_that_they_are_for(tmp_path: Path) -> None:
    """Those of the settings as headers or query, those of the request's own URL before them."""
    with Receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.port}"
        auth = {"type": "query", "query_param": "sig", "query_value": "a b"}
        settings = parse_credentials([{"url_pattern": f"{url}/sas/**", "auth": auth}])
        own = parse_credentials([{"url_pattern": f"{url}/**", "auth": {"type": "bearer", "token": "t0ken"}}])
        uploader, files = Uploader(HERE, credentials=settings), [written(tmp_path, "a.png")]
        for target in (UploadTarget(f"{url}/sas/"), UploadTarget(f"{url}/x/"), UploadTarget(f"{url}/sas/", own)):
            uploader.send(target, OutputFolder(tmp_path, "j1"), files, check=nothing)
        asked = [(request.target, request.headers.get("authorization")) for request in receiver.requests]
    assert asked == [("/sas/a.png?sig=a+b", None), ("/x/a.png", None), ("/sas/a.png", "Bearer t0ken")]


def test_credentials_do_not_go_over_plain_http_to_other_networks(tmp_path: Path) -> None:
    """As with files that are fetched: ALLOW_PRIVATE_NETWORKS says that http is all there is."""
    own = parse_credentials([{"url_pattern": "http://**", "auth": {"type": "bearer", "token": "t0ken"}}])
    target = UploadTarget("http://files.example/in/", own)
    with pytest.raises(UploadFailedError, match="credentials are sent by https only"):
        Uploader(ConnectionRules(plain_http=True)).send(
            target, OutputFolder(tmp_path, "j1"), [written(tmp_path, "a.png")], check=nothing
        )


def test_what_passes_is_tried_again_with_the_whole_file(tmp_path: Path) -> None:
    """Errors of the server and too many requests."""
    with Receiver(503, 429, 200) as receiver:
        send(Uploader(HERE, sleep=ignore_sleep), f"http://127.0.0.1:{receiver.port}/", tmp_path, "a.png")
        assert [request.body for request in receiver.requests] == [small_image()] * 3


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (302, 1), (404, 1), (500, 4)])
def test_an_upload_that_fails_is_an_error_that_names_the_file(tmp_path: Path, status: int, tries: int) -> None:
    """A refusal at once, an error of the server after the last try; of the URL only its origin is shown."""
    with Receiver(status) as receiver:
        with pytest.raises(UploadFailedError, match=f"the output a.png can't be uploaded: .*HTTP {status}") as error:
            send(Uploader(HERE, sleep=ignore_sleep), f"http://127.0.0.1:{receiver.port}/s3cret/", tmp_path, "a.png")
        assert len(receiver.requests) == tries
    assert "s3cret" not in error.value.message


def test_a_private_server_is_not_reached_unless_that_is_allowed(tmp_path: Path) -> None:
    """The connection is guarded like every one to other people's servers."""
    with Receiver() as receiver:
        with pytest.raises(UploadFailedError, match="ALLOW_PRIVATE_NETWORKS=true"):
            send(Uploader(ConnectionRules(plain_http=True)), f"http://127.0.0.1:{receiver.port}/", tmp_path, "a.png")
        assert receiver.requests == []


def test_a_file_that_becomes_shorter_is_not_uploaded(tmp_path: Path) -> None:
    """What was promised to the server can't be sent any more."""
    file = written(tmp_path, "a.mp4", "j1", content=LARGE_FILE)

    class Shrinking(OutputFolder):
        def open(self, file: EngineFile) -> EngineFileSource:
            source = super().open(file)
            (tmp_path / "j1" / "a.mp4").write_bytes(b"short")
            return source

    with Receiver() as receiver:
        target = UploadTarget(f"http://127.0.0.1:{receiver.port}/")
        with pytest.raises(UploadFailedError, match=r"the output a.mp4 changed"):
            Uploader(HERE).send(target, Shrinking(tmp_path, "j1"), [file], check=nothing)


def test_a_cancelled_job_uploads_no_more(tmp_path: Path) -> None:
    """It is asked before each file."""

    def cancelled() -> None:
        raise JobCancelledError("cancelled")

    files = [written(tmp_path, "a.png")]
    with Receiver() as receiver:
        target = UploadTarget(f"http://127.0.0.1:{receiver.port}/")
        with pytest.raises(JobCancelledError):
            Uploader(HERE).send(target, OutputFolder(tmp_path, "j1"), files, check=cancelled)
        assert receiver.requests == []


def s3_uploader(s3_client: S3Client) -> Uploader:
    """An uploader with the test server's account."""
    return Uploader(HERE, open_store=lambda url: S3Store(url, make_client=lambda: s3_client, sleep=ignore_sleep))


def test_a_bucket_gets_each_file_under_the_literal_prefix(s3_client: S3Client, s3_bucket: str, tmp_path: Path) -> None:
    """No slash is put between, spaces and unicode are what they are, and a large file comes in parts."""
    prefix = f"{tmp_path.name} ä/run-"
    uploader = s3_uploader(s3_client)
    send(uploader, f"s3://{s3_bucket}/{prefix}", tmp_path, "a b.png", "sub/ü.webp")
    send(uploader, f"s3://{s3_bucket}/{prefix}", tmp_path, "large.mp4", content=LARGE_FILE)
    for name, media_type, content in (
        ("a b.png", "image/png", small_image()),
        ("sub/ü.webp", "image/webp", small_image()),
        ("large.mp4", "video/mp4", LARGE_FILE),
    ):
        answer = s3_client.get_object(Bucket=s3_bucket, Key=prefix + name)
        with closing(answer["Body"]) as body:
            assert body.read() == content
        assert answer["ContentType"] == media_type
    assert "-" in s3_client.head_object(Bucket=s3_bucket, Key=f"{prefix}large.mp4")["ETag"]


def test_an_upload_into_a_bucket_that_refuses_us_fails(tmp_path: Path, s3_server: S3Server) -> None:
    """In one line that says what to do, and at once."""
    client = s3_server.make_client(secret_access_key="wrong")
    with closing(client), pytest.raises(UploadFailedError, match=r"can't be uploaded: .*the secret key"):
        send(s3_uploader(client), "s3://exports/x/", tmp_path, "a.png")


def test_a_server_that_is_away_fails_the_upload(tmp_path: Path, s3_server: S3Server) -> None:
    """After the last try; a client without a server answers like one that is down."""
    client = s3_server.make_client(endpoint_url="http://127.0.0.1:1", attempts=1)
    with closing(client):
        store = S3Store("s3://b", make_client=lambda: client, sleep=ignore_sleep)
        uploader = Uploader(HERE, open_store=lambda _: store, sleep=ignore_sleep)
        with pytest.raises(UploadFailedError, match="no connection"):
            send(uploader, "s3://b/x", tmp_path, "a.png")

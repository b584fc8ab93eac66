"""Input files of other people's servers and buckets: what is fetched, what is refused, what is sent."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from function.credentials import parse_credentials
from function.errors import InputMissingError, InputRefusedError, InputUnavailableError, JobFailedError
from function.sources import parse_input_allow_list
from function.storage import open_store
from function.storage.guard import resolve_name
from tests.support.https import HttpsServer, ServedFile
from tests.support.inputs import input_sources, job_of, load_image, staging
from tests.support.pictures import bomb, picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.inputs.sources import InputSources
    from tests.support.storage import S3Server

CAT = picture()
SECRET = "s3cr3t"


@pytest.fixture
def host() -> Iterator[HttpsServer]:
    """Somebody else's server with a picture."""
    with HttpsServer() as host:
        host.files["/in/cat.png"] = ServedFile(CAT, headers={})
        yield host


@pytest.fixture
def sources(tmp_path: Path) -> InputSources:
    """Sources that find every host on this machine."""
    return input_sources(tmp_path)


def fetched(sources: InputSources, url: str, **members: Any) -> tuple[str, bytes]:
    """Name and content of the file of a URL."""
    with staging(job_of(load_image(url), **members), sources) as staged:
        path = sources.input_dir / staged["1"]["inputs"]["image"]
        return path.name, path.read_bytes()


def refusal(sources: InputSources, url: str, error: type[JobFailedError] = InputRefusedError, **members: Any) -> str:
    """The line that a URL ends in: with its place, without its query or what a request brought."""
    with pytest.raises(error) as caught:
        fetched(sources, url, **members)
    assert caught.value.message.startswith("Failed to download image for node 1: ")
    assert caught.value.details["location"] == "prompt.1.inputs.image"
    assert SECRET not in f"{caught.value.message} {caught.value.details}"
    assert list(sources.input_dir.iterdir()) == []
    return caught.value.message


def credentials(pattern: str, **auth: str) -> tuple[Any, ...]:
    """One credential of a request, by default a bearer token."""
    return parse_credentials([{"url_pattern": pattern, "auth": auth or {"type": "bearer", "token": SECRET}}])


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_file_is_fetched_by_its_url(sources: InputSources, scheme: str) -> None:
    """By one request, whatever identifies it or says how long it is; its name is the URL's without the query."""
    with HttpsServer(scheme) as host:
        host.files["/a%20b/c%C3%A4t.png"] = ServedFile(CAT, headers={})
        assert fetched(sources, host.url(f"/a%20b/c%C3%A4t.png?key={SECRET}")) == ("cät.png", CAT)
        assert [(request.method, request.target) for request in host.requests] == [
            ("GET", f"/a%20b/c%C3%A4t.png?key={SECRET}")
        ]


@pytest.mark.parametrize("path", ["/download", "/files/42.php", "/x/"])
def test_a_name_that_tells_nothing_is_told_by_the_first_bytes(
    sources: InputSources, host: HttpsServer, path: str
) -> None:
    """Nodes go by extensions; what the server says of the content is not asked."""
    host.files[path] = ServedFile(CAT, headers={"Content_Type": "text/html"})
    name, content = fetched(sources, host.url(path))
    assert name.endswith(".png")
    assert content == CAT


def test_a_file_whose_length_nobody_says(sources: InputSources, host: HttpsServer) -> None:
    """It ends where the connection does."""
    host.files["/in/cat.png"].tells_length = False
    assert fetched(sources, host.url("/in/cat.png"))[1] == CAT


def test_files_of_one_name_from_two_hosts_are_two_files(sources: InputSources) -> None:
    """Nothing is shared between URLs, nor between jobs."""
    with HttpsServer() as one, HttpsServer() as other:
        one.files["/cat.png"], other.files["/cat.png"] = ServedFile(b"one"), ServedFile(b"other")
        workflow = {name: load_image(host.url("/cat.png"))["1"] for name, host in (("1", one), ("2", other))}
        with staging(job_of(workflow), sources) as staged:
            paths = [sources.input_dir / staged[name]["inputs"]["image"] for name in "12"]
            assert [path.read_bytes() for path in paths] == [b"one", b"other"]


def test_one_url_in_two_nodes_is_fetched_once(sources: InputSources, host: HttpsServer) -> None:
    """Even though files are fetched side by side."""
    url = host.url("/in/cat.png")
    with staging(job_of({str(number): load_image(url)["1"] for number in range(8)}), sources):
        pass
    assert len(host.requests) == 1


def test_a_file_that_was_replaced_is_fetched_anew(sources: InputSources, host: HttpsServer) -> None:
    """Inputs are not cached, so that none is stale and none takes the room of models."""
    url = host.url("/in/cat.png")
    assert fetched(sources, url)[1] == CAT
    host.files["/in/cat.png"].content = b"new"
    assert fetched(sources, url)[1] == b"new"


def test_a_list_of_urls(sources: InputSources, host: HttpsServer) -> None:
    """Each is a file of the folder, in order."""
    urls = [host.url("/in/cat.png"), host.url("/in/cat.png")]
    with staging(job_of(load_image(urls, "VHS_LoadImages", "directory")), sources) as staged:
        folder = sources.input_dir / staged["1"]["inputs"]["directory"]
        assert sorted(path.name for path in folder.iterdir()) == ["00000-cat.png", "00001-cat.png"]


def test_a_body_that_breaks_off_is_asked_for_again_and_never_half_a_file(
    sources: InputSources, host: HttpsServer
) -> None:
    """A server that always breaks off fails the job for good: it is not ours."""
    host.files["/in/cat.png"].cut_bytes = 7
    job = job_of(load_image(host.url("/in/cat.png")))
    with pytest.raises(InputUnavailableError, match="broke off"), staging(job, sources):
        pass
    assert len(host.requests) == 6


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/in/none.png", 200, InputMissingError),
        ("/in/cat.png", 403, InputRefusedError),
        ("/in/cat.png", 418, InputUnavailableError),
    ],
)
def test_what_a_servers_answer_means(
    sources: InputSources, host: HttpsServer, path: str, status: int, error: type[JobFailedError]
) -> None:
    """The line names node and URL, and nothing of the query."""
    host.files["/in/cat.png"].status = status
    assert host.url(path) in refusal(sources, host.url(f"{path}?key={SECRET}"), error)


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_file_that_is_larger_than_it_may_be_is_not_read_to_its_end(
    tmp_path: Path, host: HttpsServer, *, tells_length: bool
) -> None:
    """Whether or not the server says how long it is."""
    host.files["/in/cat.png"] = ServedFile(bytes(3_000_000), headers={}, tells_length=tells_length)
    assert "MAX_INPUT_SIZE_MB" in refusal(input_sources(tmp_path, max_bytes=1_000_000), host.url("/in/cat.png"))


def test_a_bomb_behind_a_url_is_refused(sources: InputSources, host: HttpsServer) -> None:
    """Before the engine sees it, whatever the server says it is."""
    host.files["/in/cat.png"] = ServedFile(bomb(), headers={"Content_Type": "text/plain"})
    assert "pixels" in refusal(sources, host.url("/in/cat.png"))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "::1", "fd00::1"])
def test_private_networks_are_refused(tmp_path: Path, address: str) -> None:
    """Unless a setting allows them, by a line that names it."""
    guarded = input_sources(tmp_path, allow_private=False, resolve=lambda *_: [address])
    assert "ALLOW_PRIVATE_NETWORKS" in refusal(guarded, "http://intranet.example/a.png")


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/a.png", "http://100.100.100.200/a.png"],
)
def test_metadata_addresses_are_refused_whatever_the_settings(tmp_path: Path, url: str) -> None:
    """Nobody gets the pod's own credentials by them."""
    assert "metadata" in refusal(input_sources(tmp_path, resolve=resolve_name), url)


def test_a_redirect_is_checked_like_any_url(tmp_path: Path, host: HttpsServer) -> None:
    """A public host is no way into the private network."""

    def resolve(name: str, _port: int) -> list[str]:
        return ["169.254.169.254"] if name == "evil.example" else ["127.0.0.1"]

    host.redirects["/in/away.png"] = "https://evil.example/a.png"
    assert "metadata" in refusal(input_sources(tmp_path, resolve=resolve), host.url("/in/away.png"))


def test_a_setting_names_the_urls_that_may_be_fetched(tmp_path: Path, host: HttpsServer) -> None:
    """Then no others, and redirects must lead to these too."""
    allowed = input_sources(tmp_path, allow=parse_input_allow_list(f"models.example:{host.port}"))
    host.redirects["/in/away.png"] = host.url("/in/cat.png", "cdn.example")
    assert fetched(allowed, host.url("/in/cat.png"))[1] == CAT
    for url in (host.url("/in/cat.png", "cdn.example"), host.url("/in/away.png")):
        assert f"add cdn.example:{host.port} to INPUT_URL_ALLOW" in refusal(allowed, url)


AUTHS = [
    ({"type": "bearer", "token": SECRET}, "authorization", f"Bearer {SECRET}"),
    ({"type": "basic", "username": "me", "password": SECRET}, "authorization", "Basic bWU6czNjcjN0"),
    ({"type": "header", "header_name": "X-Key", "header_value": SECRET}, "x-key", SECRET),
]


@pytest.mark.parametrize(("auth", "name", "value"), AUTHS)
def test_a_requests_credentials_go_to_the_urls_they_are_meant_for(
    sources: InputSources, host: HttpsServer, auth: dict[str, str], name: str, value: str
) -> None:
    """And not along a redirect to another host."""
    host.redirects["/go/cat.png"] = host.url("/in/cat.png", "cdn.example")
    given = credentials(host.url("/**"), **auth)
    assert fetched(sources, host.url("/go/cat.png"), credentials=given)[1] == CAT
    assert [request.headers.get(name) for request in host.requests] == [value, None]
    fetched(sources, host.url("/in/cat.png", "other.example"), credentials=given)
    assert name not in host.requests[-1].headers


def test_a_credential_may_be_a_query(sources: InputSources, host: HttpsServer) -> None:
    """As of Azure's shared access signatures."""
    given = credentials(host.url("/**"), type="query", query_param="sig", query_value=SECRET)
    fetched(sources, host.url("/in/cat.png?a=1"), credentials=given)
    assert host.requests[-1].target == f"/in/cat.png?a=1&sig={SECRET}"


def test_a_requests_credentials_come_before_the_urls_and_these_before_the_settings(
    tmp_path: Path, host: HttpsServer
) -> None:
    """The order of comfyui-api; a user name and password stay with their host."""
    operators = credentials("https://**", type="basic", username="o", password="p")
    sources = input_sources(tmp_path, credentials=operators)
    plain = host.url("/in/cat.png")
    login = plain.replace("https://", f"https://me:{SECRET}@")
    fetched(sources, login, credentials=credentials(host.url("/**")))
    fetched(sources, login)
    fetched(sources, plain)
    sent = [request.headers.get("authorization") for request in host.requests]
    assert sent == [f"Bearer {SECRET}", "Basic bWU6czNjcjN0", "Basic bzpw"]
    host.files["/in/cat.png"].status = 403
    assert "refuses us (403)" in refusal(sources, login)


def test_credentials_do_not_go_over_plain_http(tmp_path: Path) -> None:
    """Unless private networks are allowed, where http is often all there is."""
    with HttpsServer("http") as host:
        host.files["/a.png"] = ServedFile(CAT)
        given = credentials(host.url("/**"))
        assert fetched(input_sources(tmp_path), host.url("/a.png"), credentials=given)[1] == CAT
        guarded = input_sources(tmp_path, allow_private=False)
        assert "sent by https only" in refusal(guarded, host.url("/a.png"), credentials=given)
        assert len(host.requests) == 1


@pytest.mark.parametrize(
    "url", ["https://host.example:0/a.png", "https://h\\x/a.png", "https:///a.png", "gopher://h/a"]
)
def test_a_url_that_two_parsers_could_read_differently_is_refused(sources: InputSources, url: str) -> None:
    """So is one of another scheme."""
    assert "this URL can't be used" in refusal(sources, f"{url}?{SECRET}")


@pytest.fixture
def bucket(s3_server: S3Server, s3_bucket: str) -> Iterator[str]:
    """The URL of a prefix in somebody's bucket, with a picture whose name is not plain ASCII."""
    with closing(s3_server.make_client()) as client:
        client.put_object(Bucket=s3_bucket, Key="theirs/ä b+%20.png", Body=CAT)
        yield f"s3://{s3_bucket}/theirs"


def account(server: S3Server, **changes: str) -> dict[str, str]:
    """The account of a request, with the endpoint of the server."""
    keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    return {"type": "s3", "endpoint": server.endpoint_url, **keys, **changes}


@pytest.mark.parametrize("own_endpoint", [True, False])
def test_a_bucket_is_read_with_the_account_of_the_request(
    sources: InputSources, bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, *, own_endpoint: bool
) -> None:
    """At the endpoint that it names, or at the function's; keys with spaces and other letters are what they are."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1" if own_endpoint else s3_server.endpoint_url)
    endpoint = {} if own_endpoint else {"endpoint": ""}
    given = credentials(f"{bucket}/**", **account(s3_server, **endpoint))
    assert fetched(sources, f"{bucket}/ä b+%20.png", credentials=given) == ("ä b+_20.png", CAT)
    with pytest.raises(InputMissingError):
        fetched(sources, f"{bucket}/none.png", credentials=given)
    wrong = credentials(f"{bucket}/**", **account(s3_server, **endpoint, secret_access_key=SECRET))
    with pytest.raises((InputRefusedError, InputUnavailableError)):
        fetched(sources, f"{bucket}/ä b+%20.png", credentials=wrong)


def test_an_account_that_is_refused(sources: InputSources, bucket: str, s3_server: S3Server) -> None:
    """Nothing of it, or of what was signed with it, is in the line."""
    given = credentials(f"{bucket}/**", **account(s3_server, secret_access_key=SECRET))
    line = refusal(sources, f"{bucket}/ä b+%20.png", credentials=given)
    assert "refuses us (403)" in line
    assert "X-Amz" not in line


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("https://169.254.169.254", "metadata"),
        ("https://s3.example", "a private address, which needs ALLOW_PRIVATE_NETWORKS"),
        ("http://s3.example", "credentials are sent by https only, or with ALLOW_PRIVATE_NETWORKS"),
        ("file:///etc", "can't be used"),
        ("s3://other", "can't be used"),
        ("nonsense", "can't be used"),
    ],
)
def test_the_endpoint_of_an_account_is_guarded_like_any_url(tmp_path: Path, endpoint: str, says: str) -> None:
    """It comes from outside."""

    def resolve(name: str, port: int) -> list[str]:
        return resolve_name(name, port) if name[0].isdigit() else ["10.0.0.1"]

    guarded = input_sources(tmp_path, allow_private=False, resolve=resolve)
    auth = {"type": "s3", "access_key_id": "k", "secret_access_key": SECRET, "endpoint": endpoint}
    assert says in refusal(guarded, "s3://theirs/a.png", credentials=credentials("s3://**", **auth))


def test_other_buckets_are_not_read_with_the_pods_own_account(
    tmp_path: Path, bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the setting names them."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    url = f"{bucket}/ä b+%20.png"
    assert "to INPUT_URL_ALLOW" in refusal(input_sources(tmp_path), url)
    assert fetched(input_sources(tmp_path, allow=parse_input_allow_list(bucket)), url)[1] == CAT


def test_a_url_below_uploads_url_needs_no_setting(
    tmp_path: Path, bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is no way to what lies beside it."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    sources = input_sources(tmp_path, open_store(bucket))
    assert fetched(sources, f"{bucket}/ä b+%20.png")[1] == CAT
    for url in (f"{bucket}2/a.png", f"{bucket}/../other/a.png"):
        refusal(sources, url)

"""Models that came with the credentials of one request: they are for those whose credentials their source takes."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from function.credentials import account_of, parse_credentials
from function.errors import InputRefusedError, ModelMissingError, StorageUnavailableError
from function.models.cache import ModelCache
from function.models.lookup import ModelLookup
from function.sources import parse_allow_list
from function.storage import open_store
from function.storage.https import FetchRules
from function.storage.origins import open_origin
from function.telemetry import Metrics
from function.transfer.reader import RangedFetcher
from tests.support.https import HttpsServer, ServedFile, make_tls, on_this_machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.credentials import UrlCredential
    from function.storage.origins import Origin
    from tests.support.storage import S3Server

SECRET = "s3cr3t"
WEIGHTS = bytes(range(256)) * 8


@pytest.fixture
def host() -> Iterator[HttpsServer]:
    """Somebody else's server with a model."""
    with HttpsServer() as host:
        host.files["/m.safetensors"] = ServedFile(WEIGHTS)
        yield host


class Models:
    """Lookup and cache as a function has them, which find every host on this machine."""

    def __init__(self, root: Path, *allow: str, revalidate_seconds: float | None = 0.0) -> None:
        self.root = root / "models"
        rules = FetchRules(
            allow=parse_allow_list(",".join(allow)), allow_private=True, resolve=on_this_machine, make_tls=make_tls
        )
        store = open_store(f"file://{root}/store")
        self._lookup = ModelLookup(store, rules=rules)

        def open_for(url: str, *given: UrlCredential) -> Origin:
            account = account_of(given) if url.startswith("s3:") else None
            return open_origin(url, rules=replace(rules, credentials=given), account=account)

        self._cache = ModelCache(
            self.root,
            store,
            fetcher=RangedFetcher(open_store=open_for),
            origin_of=self._lookup.origin_of,
            capacity_bytes=0,
            metrics=Metrics(),
            revalidate_seconds=revalidate_seconds,
        )

    @property
    def in_use(self) -> bool:
        """Whether any model is pinned."""
        return any(file.in_use for file in self._cache.files())

    def use(self, name: str, *credentials: UrlCredential) -> str:
        """Use a model as a job does; the name that the engine gets."""
        workflow = {"4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}}
        (reference,) = self._lookup.references(workflow, credentials=credentials)
        with self._cache.ensure([reference], deadline=time.monotonic() + 30):
            assert (self.root / reference.key).read_bytes() == WEIGHTS
        return reference.filename


def bearer(pattern: str) -> UrlCredential:
    """The credential of a request."""
    return parse_credentials([{"url_pattern": pattern, "auth": {"type": "bearer", "token": SECRET}}])[0]


def served_to_strangers(host: HttpsServer, status: int) -> None:
    """What the server answers from now on."""
    host.files["/m.safetensors"].status = host.files["/m.safetensors"].head_status = status


@pytest.mark.parametrize("revalidate_seconds", [0.0, 3600.0, None])
@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_cached_model_of_a_request_is_not_for_those_whom_its_source_refuses(
    tmp_path: Path, host: HttpsServer, revalidate_seconds: float | None, status: int
) -> None:
    """However seldom models are revalidated, and however the source says no."""
    models = Models(tmp_path, f"models.example:{host.port}", revalidate_seconds=revalidate_seconds)
    url = host.url("/m.safetensors")
    name = models.use(url, bearer(host.url("/**")))
    served_to_strangers(host, status)
    line = f"Authentication required to access cached file for URL: {url}"
    for asked in (url, name):
        with pytest.raises((InputRefusedError, ModelMissingError)) as error:
            models.use(asked)
        assert error.value.details["location"] == "prompt.4.inputs"
        assert error.value.status == 400
        if asked == url:
            assert line in error.value.message
    served_to_strangers(host, 200)
    assert models.use(url, bearer(host.url("/**"))) == name


def test_valid_credentials_are_enough_and_nothing_is_fetched_again(tmp_path: Path, host: HttpsServer) -> None:
    """The source is only asked whether it would give the file."""
    models = Models(tmp_path, f"models.example:{host.port}", revalidate_seconds=None)
    for _ in range(3):
        models.use(host.url("/m.safetensors"), bearer(host.url("/**")))
    asked = [request for request in host.requests if request.method == "GET"]
    assert len(asked) == 1
    assert {request.headers.get("authorization") for request in host.requests} == {f"Bearer {SECRET}"}


def test_while_its_source_is_away_a_private_model_is_for_nobody(tmp_path: Path, host: HttpsServer) -> None:
    """Who brings credentials may try again; a public model is used as it is."""
    models = Models(tmp_path, f"models.example:{host.port}")
    url = host.url("/m.safetensors")
    models.use(url, bearer(host.url("/**")))
    served_to_strangers(host, 503)
    with pytest.raises(StorageUnavailableError):
        models.use(url, bearer(host.url("/**")))
    served_to_strangers(host, 200)
    public = Models(tmp_path / "other", f"models.example:{host.port}")
    public.use(url)
    served_to_strangers(host, 503)
    public.use(url)


def test_records_of_private_models_outlive_the_process(tmp_path: Path, host: HttpsServer) -> None:
    """The next one knows whom they are for."""
    Models(tmp_path, f"models.example:{host.port}").use(host.url("/m.safetensors"), bearer(host.url("/**")))
    served_to_strangers(host, 401)
    with pytest.raises(InputRefusedError, match="Authentication required"):
        Models(tmp_path, f"models.example:{host.port}", revalidate_seconds=None).use(host.url("/m.safetensors"))


@pytest.mark.parametrize("own_endpoint", [True, False])
def test_a_model_of_a_bucket_is_read_with_the_account_of_the_request(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, *, own_endpoint: bool
) -> None:
    """The bucket has to be allowed, and so has an endpoint that the request names."""
    with closing(s3_server.make_client()) as client:
        client.put_object(Bucket=s3_bucket, Key="private ä/m.safetensors", Body=WEIGHTS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url = f"s3://{s3_bucket}/private ä/m.safetensors"
    auth = {"access_key_id": s3_server.access_key_id, "secret_access_key": s3_server.secret_access_key}
    given = account(url, **auth, **({"endpoint": s3_server.endpoint_url} if own_endpoint else {}))
    if own_endpoint:
        with pytest.raises(InputRefusedError, match="to MODEL_URL_ALLOW"):
            Models(tmp_path, f"s3://{s3_bucket}").use(url, given)
    models = Models(tmp_path, f"s3://{s3_bucket}", s3_server.endpoint_url)
    assert models.use(url, given).endswith("-m.safetensors")
    with pytest.raises(InputRefusedError, match="Authentication required"):
        models.use(url, account(url, **{**auth, "secret_access_key": SECRET}, **endpoint_of(given)))


def test_an_account_that_can_not_be_used_leaves_the_model_free(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is refused, and what it looked at in the cache is not in use after it."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    with closing(s3_server.make_client()) as client:
        client.put_object(Bucket=s3_bucket, Key="public/m.safetensors", Body=WEIGHTS)
    url = f"s3://{s3_bucket}/public/m.safetensors"
    models = Models(tmp_path, f"s3://{s3_bucket}")
    models.use(url)
    with pytest.raises(InputRefusedError, match="endpoint of its credentials can't be used"):
        models.use(url, account(url, access_key_id="key", secret_access_key=SECRET, endpoint="nonsense"))
    assert not models.in_use


def account(url: str, **auth: str) -> UrlCredential:
    """The account of a request for one object."""
    return parse_credentials([{"url_pattern": url.replace(" ", "?"), "auth": {"type": "s3", **auth}}])[0]


def endpoint_of(credential: UrlCredential) -> dict[str, Any]:
    """The endpoint that an account names, if it does."""
    named = credential.account.endpoint if credential.account else ""
    return {"endpoint": named} if named else {}

"""Jobs whose models are given by URL, or named by nodes that are not ComfyUI's own."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engine import case
from tests.support.https import CERTIFICATE, HttpsServer, ServedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess
    from tests.support.storage import S3Server

MODEL = "upscale_models/tiny_srvgg_x2.safetensors"
SECRET = "s3cr3t-t0ken"


def upscale(model: str) -> dict[str, Any]:
    """An upscaler by name or URL, on an empty image."""
    workflow = case("10_upscale_srvgg")
    workflow["1"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 255}}
    for node in workflow.values():
        if node["class_type"] == "UpscaleModelLoader":
            node["inputs"]["model_name"] = model
    return workflow


@pytest.fixture
def host(model_files: Path) -> Iterator[HttpsServer]:
    """Somebody else's server with the small upscaler, behind a redirect."""
    with HttpsServer() as host:
        host.files["/files/tiny.safetensors"] = ServedFile((model_files / MODEL).read_bytes())
        host.redirects["/get/tiny.safetensors"] = host.url("/files/tiny.safetensors", "127.0.0.1")
        yield host


def refusal(function: FunctionProcess, model: str, *, status: int = 400, **more: dict[str, Any]) -> str:
    """The line that a job with this model and more nodes ends in."""
    answer = function.post("/prompt", {"prompt": upscale(model) | more})
    assert answer.status == status
    return answer.body.decode()


def test_a_model_by_its_s3_url(function_factory: FunctionFactory, s3_server: S3Server, model_files: Path) -> None:
    """Below MODELS_URL it needs no setting; another bucket is refused in a line that names setting and value."""
    bucket = s3_server.make_bucket()
    with closing(s3_server.make_client()) as client:
        client.upload_file(str(model_files / MODEL), bucket, "models/by hand/tiny.safetensors")
    function = function_factory(**s3_server.environ, MODELS_URL=f"s3://{bucket}/models")
    answer = function.post("/prompt", {"prompt": upscale(f"s3://{bucket}/models/by hand/tiny.safetensors")})
    assert answer.status == 200, answer.body
    assert "add s3://other to MODEL_URL_ALLOW" in refusal(function, "s3://other/tiny.safetensors")
    assert "MODEL_URL_ALLOW" in refusal(function, f"s3://{bucket}/private/tiny.safetensors")


def test_a_model_by_its_https_url(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """Where it is allowed it is fetched, with the credentials for its host; no secret is left anywhere."""
    auth = {"type": "bearer", "token": SECRET}
    function = function_factory(
        MODEL_URL_ALLOW=f"localhost:{host.port},127.0.0.1:{host.port}",
        MODEL_URL_CREDENTIALS=json.dumps([{"url_pattern": host.url("/**", "localhost"), "auth": auth}]),
        ALLOW_PRIVATE_NETWORKS="true",
        SSL_CERT_FILE=str(CERTIFICATE),
        LOG_LEVEL="DEBUG",
    )
    workflow = upscale(host.url(f"/get/tiny.safetensors?key={SECRET}", "localhost"))
    for _ in range(2):
        answer = function.post("/prompt", {"prompt": workflow})
        assert answer.status == 200, answer.body
    sent = {(request.target, request.headers.get("authorization")) for request in host.requests}
    assert sent == {
        (f"/get/tiny.safetensors?key={SECRET}", f"Bearer {SECRET}"),
        ("/files/tiny.safetensors", None),
    }
    assert [request.target for request in host.requests if request.method == "GET"] == ["/files/tiny.safetensors"]
    kept = [path for path in function.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []
    assert "MODEL_URL_ALLOW" in refusal(function, f"https://example.com/tiny.safetensors?key={SECRET}")


def test_urls_are_refused_until_a_setting_allows_them(function: FunctionProcess, host: HttpsServer) -> None:
    """Nothing is asked of the host."""
    url = host.url("/files/tiny.safetensors", "localhost")
    assert f"add localhost:{host.port} to MODEL_URL_ALLOW" in refusal(function, url)
    assert host.requests == []


def test_an_allowed_host_on_a_private_network_needs_a_setting_too(
    function_factory: FunctionFactory, host: HttpsServer
) -> None:
    """The allow-list alone opens no way into the cluster's own network."""
    function = function_factory(MODEL_URL_ALLOW="*", SSL_CERT_FILE=str(CERTIFICATE))
    assert "MODEL_URL_ALLOW" in refusal(function, host.url("/files/tiny.safetensors", "localhost"))
    assert "ALLOW_PRIVATE_NETWORKS" in refusal(function, "https://localhost/files/tiny.safetensors")
    assert host.requests == []


def test_pickle_formats_are_refused_until_a_setting_allows_them(function: FunctionProcess) -> None:
    """The line names it."""
    assert "ALLOW_PICKLE_MODELS=true" in refusal(function, "4x.pth")


def test_a_name_outside_comfyuis_loaders_that_fits_several_models(function: FunctionProcess, model_files: Path) -> None:
    """The job ends with the candidates, before the engine is asked."""
    function.put_model("upscale_models", model_files / MODEL)
    function.put_model("loras", model_files / MODEL)
    node = {"class_type": "PreviewAny", "inputs": {"source": "tiny_srvgg_x2.safetensors"}}
    line = refusal(function, "tiny_srvgg_x2.safetensors", status=422, other=node)
    assert "loras/tiny_srvgg_x2.safetensors, upscale_models/tiny_srvgg_x2.safetensors" in line

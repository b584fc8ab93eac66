"""Defects of comfyui-api about inputs, models by URL and credentials: what its clients get here, over HTTP.

What they rest on is tested in parts: `test_inputs_*` and `test_model_cache_private` below tests/integration,
`test_models_references` (folders of loaders, names of models by URL) below tests/unit.
"""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from function.models.references import model_references
from function.sources import parse_allow_list
from tests.e2e.test_model_sources import upscale
from tests.support.function_process import functions
from tests.support.https import CERTIFICATE, HttpsServer, ServedFile
from tests.support.pictures import bomb, picture, to_base64
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engine import Answer
    from tests.support.function_process import FunctionFactory, FunctionProcess
    from tests.support.storage import S3Server

UPSCALER = "upscale_models/tiny_srvgg_x2.safetensors"
SECRET = "s3cr3t-t0ken"


@pytest.fixture(scope="module")
def host(model_files: Path) -> Iterator[HttpsServer]:
    """Somebody else's server: pictures of one name, and a model for those with a token."""
    with HttpsServer() as host:
        for color in ("red", "blue"):
            host.files[f"/{color}/photo.png"] = ServedFile(picture(color=color), headers={})
        host.files["/private/tiny.safetensors"] = ServedFile((model_files / UPSCALER).read_bytes())
        yield host


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory, host: HttpsServer) -> Iterator[FunctionProcess]:
    """A function that may fetch from that server, with a model directory of its own, and nothing else set."""
    folder = tmp_path_factory.mktemp("function")
    with functions(folder) as start:
        yield start(
            ALLOW_PRIVATE_NETWORKS="true",
            MODEL_URL_ALLOW=f"localhost:{host.port}",
            MODEL_REVALIDATE_SECONDS="never",
            MODEL_DIR=str(folder / "weights"),
            SSL_CERT_FILE=str(CERTIFICATE),
            LOG_LEVEL="DEBUG",
        )


def saving(*values: Any) -> dict[str, Any]:
    """A workflow that loads these images and saves each of them, in their order."""
    workflow = {}
    for number, value in enumerate(values, 10):
        workflow[str(number)] = {"class_type": "LoadImage", "inputs": {"image": value}}
        saver = {"images": [str(number), 0], "filename_prefix": f"out-{number}"}
        workflow[str(number + 100)] = {"class_type": "SaveImage", "inputs": saver}
    return workflow


def colors(answer: Answer) -> list[tuple[int, ...]]:
    """The colour of each picture of an answer."""
    assert answer.status == 200, answer.body[:500]
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in answer.json["images"]]
    return [image.convert("RGB").getpixel((0, 0)) for image in pictures]  # type: ignore[misc]  # a pixel of RGB


def refused(answer: Answer, location: str) -> str:
    """The line of an answer that names a member of the request."""
    assert answer.status == 400, answer.body[:500]
    assert answer.json["location"] == location
    assert SECRET.encode() not in answer.body
    line: str = answer.json["error"]
    return line


def left(function: FunctionProcess) -> list[Path]:
    """What lies in the engine's input directory."""
    return sorted((function.root / "data" / "input").rglob("*"))


def bearer(host: HttpsServer) -> list[dict[str, Any]]:
    """The credentials of a request, in comfyui-api's form."""
    return [{"url_pattern": host.url("/**", "localhost"), "auth": {"type": "bearer", "token": SECRET}}]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_two_urls_of_one_file_name_are_two_files(function: FunctionProcess, host: HttpsServer) -> None:
    """Neither meets the other, and both are gone with the job."""
    urls = [host.url(f"/{color}/photo.png", "localhost") for color in ("red", "blue")]
    before = left(function)
    assert colors(function.post("/prompt", {"prompt": saving(*urls)})) == [RED, BLUE]
    assert left(function) == before


def test_two_first_requests_at_a_time_for_one_url_both_get_it(function: FunctionProcess, host: HttpsServer) -> None:
    """Of an input and of a model; the model is brought once."""
    host.files["/files/first.safetensors"] = host.files["/private/tiny.safetensors"]
    workflow = upscale(host.url("/files/first.safetensors", "localhost"))
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": host.url("/red/photo.png", "localhost")}}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: function.post("/prompt", {"prompt": workflow}), range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    asked = [request for request in host.requests if request.target == "/files/first.safetensors"]
    assert [request.method for request in asked].count("GET") == 1


def test_an_input_that_was_replaced_is_not_stale(function: FunctionProcess, host: HttpsServer) -> None:
    """Inputs are not cached by their URLs, and take no room of models."""
    url = host.url("/changing.png", "localhost")
    for name, color in (("red", RED), ("blue", BLUE)):
        host.files["/changing.png"] = ServedFile(picture(color=name))
        assert colors(function.post("/prompt", {"prompt": saving(url)})) == [color]
    assert [path for path in (function.root.parent / "weights").rglob("*") if path.suffix == ".png"] == []


@pytest.mark.parametrize("head", ["data:image/png;base64,", ""])
def test_a_picture_inside_the_request_arrives_as_it_is(function: FunctionProcess, head: str) -> None:
    """As a data URI, whose head is not decoded with it, and as bare base64."""
    assert colors(function.post("/prompt", {"prompt": saving(head + to_base64(picture(color="blue")))})) == [BLUE]


def test_a_small_jpeg_in_base64_is_no_path(function: FunctionProcess) -> None:
    """Although it begins with a slash and is short."""
    text = to_base64(picture("JPEG", size=(16, 16)))
    while text.endswith("=="):
        text = to_base64(picture("JPEG", size=(16, 16)) + b"\0")
    assert text.startswith("/9j/")
    ((red, green, blue),) = colors(function.post("/prompt", {"prompt": saving(text)}))
    assert (red > 250, max(green, blue) < 5) == (True, True)


def test_a_bare_file_name_is_an_input(function: FunctionProcess) -> None:
    """Of the engine's input directory, where it stays; an upload of the name comes first."""
    there = function.root / "data" / "input" / "example.png"
    there.write_bytes(picture(color="red"))
    assert colors(function.post("/prompt", {"prompt": saving("example.png")})) == [RED]
    assert there.exists()
    upload = function.store / "uploads" / "example.png"
    upload.parent.mkdir(parents=True, exist_ok=True)
    upload.write_bytes(picture(color="blue"))
    assert colors(function.post("/prompt", {"prompt": saving("example.png")})) == [BLUE]
    there.unlink()


@pytest.mark.parametrize("value", ["/etc/hostname", "../output/x.png", "file:///etc/hostname"])
def test_paths_of_the_machine_are_no_inputs(function: FunctionProcess, value: str) -> None:
    """Wherever they lead; the answer names the input."""
    line = refused(function.post("/prompt", {"prompt": saving(value)}), "prompt.10.inputs.image")
    assert line.startswith("Failed to download image for node 10: ")


def test_link_local_addresses_are_not_reached(function: FunctionProcess) -> None:
    """Whatever the settings say, by an input or by the endpoint of an account."""
    url = f"http://169.254.169.254/latest/meta-data/?{SECRET}"
    assert "metadata" in refused(function.post("/prompt", {"prompt": saving(url)}), "prompt.10.inputs.image")
    auth = {"type": "s3", "access_key_id": "k", "secret_access_key": SECRET, "endpoint": "http://169.254.169.254"}
    body = {"prompt": saving("s3://b/a.png"), "credentials": [{"url_pattern": "s3://b/**", "auth": auth}]}
    assert "metadata" in refused(function.post("/prompt", body), "prompt.10.inputs.image")


def test_private_addresses_need_a_setting(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """Nothing is asked of them without it."""
    function = function_factory(SSL_CERT_FILE=str(CERTIFICATE))
    before = len(host.requests)
    answer = function.post("/prompt", {"prompt": saving(host.url("/red/photo.png", "localhost"))})
    assert "ALLOW_PRIVATE_NETWORKS" in refused(answer, "prompt.10.inputs.image")
    assert len(host.requests) == before


def test_an_image_bomb_never_reaches_the_engine(function: FunctionProcess) -> None:
    """It is refused by its header."""
    before = function.engine_history()
    answer = function.post("/prompt", {"prompt": saving(to_base64(bomb()))})
    assert "pixels" in refused(answer, "prompt.10.inputs.image")
    assert function.engine_history() == before


def test_credentials_of_a_request_are_for_inputs_and_models_and_stay_nowhere(
    function: FunctionProcess, host: HttpsServer
) -> None:
    """As comfyui-api's own example says, a bearer for every URL of a hub; no answer, file or log line has them."""
    url = host.url("/private/tiny.safetensors", "localhost")
    workflow = upscale(url) | saving(host.url(f"/red/photo.png?{SECRET}", "localhost"))
    host.requests.clear()
    answer = function.post("/prompt", {"prompt": workflow, "credentials": bearer(host)})
    assert answer.status == 200, answer.body[:500]
    assert {request.headers.get("authorization") for request in host.requests} == {f"Bearer {SECRET}"}
    assert "credentials" not in answer.json
    kept = [path for path in function.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []


def test_a_private_model_in_the_cache_needs_valid_credentials(function: FunctionProcess, host: HttpsServer) -> None:
    """Although what is there stays as it is, and although somebody else brought it."""
    url = host.url("/private/other.safetensors", "localhost")
    host.files["/private/other.safetensors"] = ServedFile(host.files["/private/tiny.safetensors"].content)
    assert function.post("/prompt", {"prompt": upscale(url), "credentials": bearer(host)}).status == 200
    host.files["/private/other.safetensors"].status = host.files["/private/other.safetensors"].head_status = 401
    for body in ({}, {"credentials": [{**bearer(host)[0], "auth": {"type": "bearer", "token": "dummy"}}]}):
        line = refused(function.post("/prompt", {"prompt": upscale(url), **body}), "prompt.2.inputs")
        assert "Failed to process model for node 2: " in line
        assert f"Authentication required to access cached file for URL: {url}" in line


def test_a_model_by_url_goes_to_model_dir(function: FunctionProcess, host: HttpsServer) -> None:
    """Into the folder that its loader reads, whatever COMFY_HOME says."""
    host.files["/m/where.safetensors"] = host.files["/private/tiny.safetensors"]
    assert function.post("/prompt", {"prompt": upscale(host.url("/m/where.safetensors", "localhost"))}).status == 200
    weights = function.root.parent / "weights"
    assert [path.parent.name for path in weights.rglob("*-where.safetensors")] == ["upscale_models"]


@pytest.mark.parametrize(
    ("class_type", "name", "folder"),
    [
        ("UNETLoader", "unet_name", "diffusion_models"),
        ("CLIPVisionLoader", "clip_name", "clip_vision"),
        ("CLIPLoader", "clip_name", "text_encoders"),
        ("TripleCLIPLoader", "clip_name3", "text_encoders"),
        ("QuadrupleCLIPLoader", "clip_name4", "text_encoders"),
        ("SomeCustomUnetLoader", "unet_name", "diffusion_models"),
    ],
)
def test_models_by_url_go_where_their_loader_looks(class_type: str, name: str, folder: str) -> None:
    """Also those of loaders that comfyui-api does not know; two hosts' files of one name are two files."""
    workflow = {
        str(number): {"class_type": class_type, "inputs": {name: f"https://{host}.example/files/m.safetensors"}}
        for number, host in enumerate(("one", "two"))
    }
    references = model_references(workflow, allow=parse_allow_list("*"))
    assert {reference.folder for reference in references} == {folder}
    assert len({reference.filename for reference in references}) == 2


def test_keys_of_buckets_with_spaces_and_other_letters(
    function_factory: FunctionFactory, s3_server: S3Server, s3_bucket: str
) -> None:
    """Literal in an s3:// URL, of an upload as of an object that a setting names."""
    client = s3_server.make_client()
    for key in ("uploads/ä b.png", "other/ö c+d%20.png"):
        client.put_object(Bucket=s3_bucket, Key=key, Body=picture(color="blue"))
    client.close()
    function = function_factory(
        **s3_server.environ, UPLOADS_URL=f"s3://{s3_bucket}/uploads", INPUT_URL_ALLOW=f"s3://{s3_bucket}/other"
    )
    values = ["ä b.png", f"s3://{s3_bucket}/uploads/ä b.png", f"s3://{s3_bucket}/other/ö c+d%20.png"]
    assert colors(function.post("/prompt", {"prompt": saving(*values)})) == [BLUE] * 3
    answer = function.post("/prompt", {"prompt": saving(f"s3://{s3_bucket}/private/a.png")})
    assert "to INPUT_URL_ALLOW" in refused(answer, "prompt.10.inputs.image")


@pytest.mark.parametrize(("path", "name"), [("/prompt", "prompt"), ("/jobs", "workflow")])
def test_the_inputs_of_a_job_that_waits_are_there_before_its_202(
    function: FunctionProcess, host: HttpsServer, path: str, name: str
) -> None:
    """So credentials are needed no more, and what is wrong with an input is the answer."""
    prefer = {"Prefer": "respond-async"}
    host.files["/once.png"] = ServedFile(picture(color="blue"))
    body = {name: saving(host.url(f"/once.png?{SECRET}", "localhost")), "credentials": bearer(host)}
    accepted = function.post(path, body, prefer)
    assert accepted.status == 202, accepted.body
    del host.files["/once.png"]
    job = f"/jobs/{accepted.json['job_id']}"
    wait_until(lambda: function.get(job).json["status"] in {"completed", "failed"}, what="the job's end")
    assert function.get(job).json["status"] == "completed"
    assert SECRET not in json.dumps(function.get(job).json)
    line = refused(function.post(path, body, prefer), "prompt.10.inputs.image")
    assert line.startswith("Failed to download image for node 10: ")
    kept = [file for file in function.root.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert kept == []


def test_a_service_without_an_engine_fetches_inputs_too(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """What is wrong with one is its answer to a client; an event, whose answer nobody reads, becomes a failed job."""
    function = function_factory(
        probe="/health",
        ENGINE="none",
        DISPATCH_URL="http://127.0.0.1:1/",
        ALLOW_PRIVATE_NETWORKS="true",
        SSL_CERT_FILE=str(CERTIFICATE),
    )
    good, bad = (saving(host.url(path, "localhost")) for path in ("/red/photo.png", "/none.png"))
    job_id = function.post("/jobs", {"workflow": good}).json["job_id"]
    record = json.loads((function.store / "results" / "jobs" / job_id / "job.json").read_bytes())
    assert record["workflow"]["10"]["inputs"]["image"].endswith(f"/inputs/{job_id}/0/photo.png")
    assert "there is no such file" in refused(function.post("/jobs", {"workflow": bad}), "prompt.10.inputs.image")
    assert function.send_event("bad", {"workflow": bad}).status == 202
    result = json.loads(function.result_path("bad").read_bytes())
    assert (result["error"]["code"], result["error"]["location"]) == ("input_missing", "prompt.10.inputs.image")


@pytest.mark.parametrize(
    "bad",
    [
        "none",
        [{"url_pattern": "https://**"}],
        [{"url_pattern": "https://**", "auth": {"type": "bearer", "token": SECRET, "more": SECRET}}],
        [{"url_pattern": "https://**", "auth": {"type": SECRET}}],
        [{"url_pattern": "https://**", "auth": {"type": "header", "header_name": "Host", "header_value": SECRET}}],
    ],
)
def test_credentials_that_are_none_are_refused_without_being_repeated(function: FunctionProcess, bad: Any) -> None:
    """The line says which member is wrong."""
    for path, name in (("/prompt", "prompt"), ("/jobs", "workflow")):
        answer = function.post(path, {name: saving("a.png"), "credentials": bad})
        assert (answer.status, "credentials" in answer.json["error"]) == (400, True)
        assert SECRET.encode() not in answer.body

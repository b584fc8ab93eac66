"""`GET /models`, `POST /download` and the metrics of the cache, over HTTP against the function as it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.engine import case
from tests.support.function_process import Background, functions
from tests.support.https import CERTIFICATE, HttpsServer, ServedFile
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.function_process import FunctionProcess

SECRET = "s3cr3t-t0ken"
TOKEN = {"type": "bearer", "token": SECRET}
UPSCALER = "upscale_models/tiny_srvgg_x2.safetensors"


@pytest.fixture(scope="module")
def host(model_files: Path) -> Iterator[HttpsServer]:
    """Somebody else's server."""
    with HttpsServer() as host:
        host.files["/files/theirs.safetensors"] = ServedFile((model_files / UPSCALER).read_bytes())
        host.files["/files/big.safetensors"] = ServedFile(bytes(3_000_000))
        yield host


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory, host: HttpsServer) -> Iterator[FunctionProcess]:
    """A function that may fetch from that server, with room for 5 MiB of models."""
    with functions(tmp_path_factory.mktemp("function")) as start:
        yield start(
            MODEL_URL_ALLOW=f"localhost:{host.port}",
            ALLOW_PRIVATE_NETWORKS="true",
            SSL_CERT_FILE=str(CERTIFICATE),
            LRU_CACHE_SIZE_GB=str(5 / 1024),
            LOG_LEVEL="DEBUG",
        )


def put(function: FunctionProcess, key: str, size_bytes: int = 1_000) -> None:
    """Put a model of this size into storage."""
    path = function.store / "models" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(key[-1].encode() * size_bytes)


def download(function: FunctionProcess, url: str, model_type: str = "checkpoints", **more: Any) -> dict[str, Any]:
    """Bring a model and wait for it; what the function answers."""
    answer = function.post("/download", {"url": url, "model_type": model_type, "wait": True, **more})
    assert answer.status == 200, answer.body
    document: dict[str, Any] = answer.json
    return document


def metrics(function: FunctionProcess) -> dict[str, float]:
    """Every sample of the cache's metrics that has no label."""
    families = text_string_to_metric_families(function.get("/metrics").body.decode())
    samples = (sample for family in families for sample in family.samples if not sample.labels)
    return {sample.name.removeprefix("comfyfn_cache_"): sample.value for sample in samples}


def test_models_are_listed_by_folder_whoever_brought_them(function: FunctionProcess) -> None:
    """Every folder of ComfyUI's is there; hidden files, other files and unfinished downloads are not."""
    models = function.root / "data" / "models"
    for name in (
        "loras/a/b.safetensors",
        "loras/readme.txt",
        "unet/old.safetensors",
        "loras/.x.comfyfn-part",
        "mine/c.pt",
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()
    put(function, "loras/ours.safetensors")
    download(function, "ours.safetensors", "loras")
    listed = function.get("/models").json
    assert listed["loras"] == ["a/b.safetensors", "ours.safetensors"]
    assert listed["diffusion_models"] == ["old.safetensors"]
    assert (listed["mine"], listed["vae"]) == (["c.pt"], [])


def test_a_file_below_models_url_is_brought_by_its_name(function: FunctionProcess) -> None:
    """The answer says how large it is and how long that took; it takes the folder in the name or not."""
    put(function, "checkpoints/sub/d.safetensors", 2_000)
    first = download(function, "checkpoints/sub/d.safetensors")
    assert first.pop("duration") >= 0
    assert first == {
        "url": "checkpoints/sub/d.safetensors",
        "model_type": "checkpoints",
        "filename": "sub/d.safetensors",
        "status": "completed",
        "size": 2_000,
    }
    assert download(function, "sub/d.safetensors")["filename"] == "sub/d.safetensors"
    assert (function.root / "data/models/checkpoints/sub/d.safetensors").stat().st_size == 2_000


def test_a_job_uses_a_downloaded_file_by_the_name_that_it_was_given(
    function: FunctionProcess, host: HttpsServer
) -> None:
    """Although storage has no model of that name."""
    url = host.url("/files/theirs.safetensors", "localhost")
    answer = download(function, url, "upscale_models", filename="mine.safetensors")
    assert (answer["url"], answer["filename"]) == (url, "mine.safetensors")
    workflow = case("10_upscale_srvgg")
    for node in workflow.values():
        if node["class_type"] == "UpscaleModelLoader":
            node["inputs"]["model_name"] = "mine.safetensors"
    function.put_upload("in_64x48.png")
    assert function.post("/prompt", {"prompt": workflow}).status == 200


def test_credentials_of_a_request_go_to_its_host_and_stay_nowhere(function: FunctionProcess, host: HttpsServer) -> None:
    """Neither they nor the URL's query are in any file or log line."""
    host.requests.clear()
    url = host.url(f"/files/theirs.safetensors?key={SECRET}", "localhost")
    download(function, url, filename="secret.safetensors", auth={"type": "bearer", "token": SECRET})
    assert {request.method for request in host.requests} == {"HEAD", "GET"}
    assert {request.headers.get("authorization") for request in host.requests} == {f"Bearer {SECRET}"}
    kept = [path for path in function.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []


def test_a_download_that_is_asked_for_twice_runs_once(function: FunctionProcess, host: HttpsServer) -> None:
    """Nobody has to wait: 202 at once, the file appears, whoever waits for it gets the same one."""
    host.requests.clear()
    before = metrics(function)["downloaded_bytes_total"]
    wanted = {"url": host.url("/files/big.safetensors", "localhost"), "model_type": "checkpoints"}
    for _ in range(3):
        answer = function.post("/download", wanted)
        assert answer.status == 202
        assert answer.json == {**wanted, "filename": "big.safetensors", "status": "started"}
    calls = [Background(lambda: function.post("/download", {**wanted, "wait": True})) for _ in range(2)]
    assert {call.join().json["size"] for call in calls} == {3_000_000}
    assert metrics(function)["downloaded_bytes_total"] - before == 3_000_000


def test_a_download_in_the_background_that_fails_is_logged(function: FunctionProcess, host: HttpsServer) -> None:
    """In one line that names it, without the query of its URL."""
    url = host.url(f"/files/nowhere.safetensors?key={SECRET}", "localhost")
    assert function.post("/download", {"url": url, "model_type": "vae"}).status == 202
    wait_until(lambda: "download: model vae/nowhere.safetensors" in function.log.read_text(), what="the log line")
    assert SECRET not in function.log.read_text()


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"url": "a.safetensors"}, 400, "invalid_request", "model_type: Field required"),
        ({"url": "a.safetensors", "model_type": "vae", "wiat": 1}, 400, "invalid_request", "wiat: unknown field"),
        ({"url": "a.safetensors", "model_type": "../vae"}, 400, "invalid_request", "there are audio_encoders, "),
        ({"url": "a.safetensors", "model_type": ".comfyfn"}, 400, "invalid_request", "no such model folder"),
        ({"url": "http://u:p@x/a.safetensors", "model_type": "vae"}, 400, "invalid_request", "MODEL_URL_CREDENTIALS"),
        ({"url": "ftp://x/a.safetensors", "model_type": "vae"}, 400, "invalid_request", "neither with https://"),
        ({"url": "https://x/a.sft", "model_type": "vae", "auth": {"type": "magic"}}, 400, "invalid_request", "bearer"),
        ({"url": "s3://x/a.sft", "model_type": "vae", "auth": {"type": "bearer"}}, 400, "invalid_request", "bearer"),
        ({"url": "s3://x/a.sft", "model_type": "vae", "auth": TOKEN}, 400, "invalid_request", "type s3 is for"),
        ({"url": "a.sft", "model_type": "vae", "filename": "b.sft"}, 400, "invalid_request", "keeps its name"),
        ({"url": "a.safetensors", "model_type": "vae"}, 422, "model_missing", "neither in vae nor at file://"),
        ({"url": "../a.safetensors", "model_type": "vae"}, 400, "input_refused", "not a relative file name"),
        ({"url": "https://x/a.sft", "model_type": "vae", "filename": "/a.sft"}, 400, "input_refused", "relative"),
        ({"url": "https://x/a.pth", "model_type": "vae"}, 400, "input_refused", "ALLOW_PICKLE_MODELS=true"),
        ({"url": "https://other.example/a.sft", "model_type": "vae"}, 400, "input_refused", "add other.example"),
        ({"url": "s3://other/a.sft", "model_type": "vae"}, 400, "input_refused", "add s3://other to MODEL_URL_ALLOW"),
    ],
)
def test_a_download_that_can_not_be_is_refused_in_one_line(
    function: FunctionProcess, body: dict[str, Any], status: int, code: str, says: str
) -> None:
    """With what is wrong and what would be right; nothing secret is repeated."""
    answer = function.post("/download", {"wait": True, **body})
    assert (answer.status, answer.json["code"]) == (status, code)
    assert says in answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_every_metric_of_the_cache_counts(function: FunctionProcess) -> None:
    """A miss, a hit, and a miss for which something else has to go."""
    put(function, "checkpoints/large.safetensors", 3_500_000)
    put(function, "checkpoints/larger.safetensors", 4_500_000)
    begin = metrics(function)
    download(function, "large.safetensors")
    missed = metrics(function)
    assert missed["misses_total"] - begin["misses_total"] == 1
    assert missed["hits_total"] == begin["hits_total"]
    assert missed["downloaded_bytes_total"] - begin["downloaded_bytes_total"] == 3_500_000
    assert missed["download_bytes_per_second"] > 0
    assert missed["wait_seconds_count"] - begin["wait_seconds_count"] == 1
    assert missed["wait_seconds_sum"] > begin["wait_seconds_sum"]
    download(function, "large.safetensors")
    hit = metrics(function)
    assert hit["hits_total"] - missed["hits_total"] == 1
    assert (hit["misses_total"], hit["downloaded_bytes_total"]) == (
        missed["misses_total"],
        missed["downloaded_bytes_total"],
    )
    assert hit["wait_seconds_count"] - missed["wait_seconds_count"] == 1
    download(function, "larger.safetensors")
    evicted = metrics(function)
    assert evicted["evictions_total"] > hit["evictions_total"]
    assert evicted["capacity_bytes"] == 5 * 1024**2
    assert 4_500_000 <= evicted["size_bytes"] <= evicted["capacity_bytes"]

"""Models of a manifest, against the function as it runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.engine import case
from tests.support.https import CERTIFICATE, HttpsServer, ServedFile
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionFactory, FunctionProcess

CONTENT = b"weights" * 1000


@pytest.fixture
def host() -> Iterator[HttpsServer]:
    """Somebody else's server, which MODEL_URL_ALLOW does not name."""
    with HttpsServer() as host:
        host.files["/a.bin"] = host.files["/there"] = ServedFile(CONTENT)
        host.redirects["/moved"] = host.url("/there", "127.0.0.1")
        yield host


def environ(host: HttpsServer, *, private: bool = True, **models: dict[str, str]) -> dict[str, str]:
    """Settings with a manifest: paths by URL path, of before_start and after_start."""
    listed = {
        when: [{"url": host.url(path, "localhost"), "local_path": name} for path, name in wanted.items()]
        for when, wanted in models.items()
    }
    return {
        "MANIFEST_JSON": json.dumps({"models": listed, "pip": ["kornia"], "apt": ["ffmpeg"]}),
        "ALLOW_PRIVATE_NETWORKS": str(private).lower(),
        "SSL_CERT_FILE": str(CERTIFICATE),
    }


def model(function: FunctionProcess, key: str) -> bytes | None:
    """A file of the model directory; None if it isn't there."""
    path = function.root / "data" / "models" / key
    return path.read_bytes() if path.exists() else None


def test_models_of_before_start_are_there_when_the_function_is_ready(
    function_factory: FunctionFactory, host: HttpsServer
) -> None:
    """Whatever MODEL_URL_ALLOW says, for the operator named them; `/models` lists them."""
    paths = {"/a.bin": "/opt/ComfyUI/models/checkpoints/a.safetensors", "/moved": "loras/sub/b.safetensors"}
    function = function_factory(**environ(host, before_start=paths))
    assert model(function, "checkpoints/a.safetensors") == CONTENT
    assert model(function, "loras/sub/b.safetensors") == CONTENT
    assert function.get("/models").json["loras"] == ["sub/b.safetensors"]


def test_the_function_is_not_ready_before_but_alive_and_answering(
    function_factory: FunctionFactory, host: HttpsServer
) -> None:
    """The port is open from the start; a server that is away is asked again until it is back."""
    host.files["/a.bin"].head_status = host.files["/a.bin"].status = 503
    function = function_factory(probe="/health", **environ(host, before_start={"/a.bin": "vae/a.safetensors"}))
    wait_until(lambda: "tried again" in function.get("/ready").json.get("detail", ""), what="a try in vain")
    assert (function.get("/health").status, function.get("/ready").status) == (200, 503)
    assert model(function, "vae/a.safetensors") is None
    host.files["/a.bin"].head_status = host.files["/a.bin"].status = 200
    wait_until(function.is_ready, what="/ready")
    assert model(function, "vae/a.safetensors") == CONTENT


@pytest.mark.parametrize(
    ("path", "name", "private", "says"),
    [
        ("/none", "vae/a.safetensors", True, "is neither in vae nor at"),
        ("/a.bin", "vae/a.ckpt", True, "ALLOW_PICKLE_MODELS"),
        ("/a.bin", "vae/a.safetensors", False, "ALLOW_PRIVATE_NETWORKS"),
    ],
)
def test_a_model_that_can_not_be_had_makes_the_start_fail(
    function_factory: FunctionFactory, host: HttpsServer, path: str, name: str, *, private: bool, says: str
) -> None:
    """`/health` and `/ready` say why, in one line that is in the log once."""
    function = function_factory(probe="/metrics", **environ(host, private=private, before_start={path: name}))
    wait_until(lambda: function.get("/health").status == 500, what="the end of the start")
    for probe in ("/health", "/ready"):
        assert says in function.get(probe).json["detail"]
    assert function.log.read_text().count("the start has failed") == 1


def test_a_model_of_after_start_that_can_not_be_had_is_logged_and_nothing_else(
    function_factory: FunctionFactory, host: HttpsServer
) -> None:
    """The next one comes all the same, the function is ready, and jobs run; no process ends."""
    wanted = {"/none": "vae/none.safetensors", "/a.bin": "vae/a.safetensors"}
    function = function_factory(**environ(host, after_start=wanted))
    worker = function.worker_pid
    wait_until(lambda: model(function, "vae/a.safetensors") == CONTENT, what="the second model")
    assert "'none.safetensors' is neither in vae nor at" in function.log.read_text()
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200
    assert (function.worker_pid, function.get("/ready").status) == (worker, 200)


def test_what_belongs_into_the_image_is_named_in_one_line(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """Nothing is installed at run time, and nothing fails for it."""
    function = function_factory(**environ(host))
    (line,) = [line for line in function.log.read_text().splitlines() if "belongs into the image" in line]
    assert "apt ffmpeg, pip kornia" in json.loads(line)["message"]

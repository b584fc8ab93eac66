"""The main job with everything on S3, and with S3 away."""

from __future__ import annotations

import hashlib
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from events import JOB_COMPLETED
from tests.e2e.test_main_job import slow_workflow
from tests.e2e.test_serving import start_slow_job
from tests.support.engine import DATA, case
from tests.support.redelivery import deliver
from tests.support.storage import FlakyProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

    from tests.support.function_process import FunctionFactory
    from tests.support.storage import S3Server


@pytest.fixture
def bucket(s3_server: S3Server, model_files: Path) -> str:
    """A bucket with an input image and the small upscaler."""
    name = s3_server.make_bucket()
    with closing(s3_server.make_client()) as client:
        client.upload_file(str(DATA / "cases" / "in_64x48.png"), name, "uploads/in_64x48.png")
        model = "upscale_models/tiny_srvgg_x2.safetensors"
        client.upload_file(str(model_files / model), name, f"models/{model}")
    return name


@pytest.fixture
def client(s3_server: S3Server) -> Iterator[S3Client]:
    """Looks into the bucket past the function."""
    with closing(s3_server.make_client()) as client:
        yield client


def urls(bucket: str) -> dict[str, str]:
    """The settings that put everything into one bucket."""
    return {f"{name}_URL": f"s3://{bucket}/{name.lower()}" for name in ("MODELS", "UPLOADS", "RESULTS")}


def test_models_and_inputs_come_from_s3_and_results_go_there(
    function_factory: FunctionFactory, s3_server: S3Server, bucket: str, client: S3Client
) -> None:
    """Outputs and manifest lie in the bucket; `/outputs/` redirects to a link that needs no credentials."""
    function = function_factory(**s3_server.environ, **urls(bucket))
    answer = function.send_event("e1", {"workflow": case("10_upscale_srvgg")})
    manifest = answer.json["data"]
    (output,) = manifest["outputs"]
    key = f"results/outputs/{manifest['job_id']}/1/c10_00001_.png"
    assert output["url"] == f"s3://{bucket}/{key}"
    stored = client.get_object(Bucket=bucket, Key=key)
    with closing(stored["Body"]) as body:
        assert hashlib.sha256(body.read()).hexdigest() == output["sha256"]
    assert stored["ContentType"] == "image/png"
    link = function.get(f"/outputs/{manifest['job_id']}/1/c10_00001_.png")
    assert link.status == 302
    assert link.headers["location"].startswith(s3_server.endpoint_url)
    with urllib.request.urlopen(link.headers["location"], timeout=10) as fetched:  # noqa: S310  (checked above)
        assert hashlib.sha256(fetched.read()).hexdigest() == output["sha256"]
    assert function.send_event("e1", {"workflow": case("10_upscale_srvgg")}).body == answer.body


def test_a_cached_model_and_a_job_that_stores_nothing_do_without_s3(
    function_factory: FunctionFactory, s3_server: S3Server, bucket: str
) -> None:
    """Once a model is here, a plain request works while S3 is away."""
    workflow = case("10_upscale_srvgg")
    workflow["1"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 255}}
    with FlakyProxy(s3_server.endpoint_url, cuts=[]) as proxy:
        function = function_factory(**{**s3_server.environ, "AWS_ENDPOINT_URL": proxy.url}, **urls(bucket))
        assert function.post("/prompt", {"prompt": workflow}).status == 200
        proxy.down = True
        proxy.hang_up()
        assert function.post("/prompt", {"prompt": workflow}).status == 200


def test_a_job_whose_storage_is_away_is_retryable_and_succeeds_later(
    function_factory: FunctionFactory, s3_server: S3Server, bucket: str
) -> None:
    """Before the claim and while outputs are stored alike: 503, no manifest, and the redelivery completes."""
    with FlakyProxy(s3_server.endpoint_url, cuts=[]) as proxy:
        function = function_factory(**{**s3_server.environ, "AWS_ENDPOINT_URL": proxy.url}, **urls(bucket))
        running = start_slow_job(function)
        proxy.down = True
        proxy.hang_up()
        for answer in (running.join(), function.send_event("e1", {"workflow": case("01_empty_save")})):
            assert (answer.status, answer.json["code"]) == (503, "storage_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert s3_server.secret_access_key.encode() not in answer.body
        assert function.get("/health").status == 200
        proxy.down = False
        assert function.send_event("e1", {"workflow": case("01_empty_save")}).json["type"] == JOB_COMPLETED
        again = deliver(lambda: function.send_event("slow", {"workflow": slow_workflow()}))
        assert (again.json["type"], again.json["data"]["attempt"]) == (JOB_COMPLETED, 2)


def test_wrong_credentials_are_said_and_never_shown(
    function_factory: FunctionFactory, s3_server: S3Server, bucket: str
) -> None:
    """The answer names the store and the remedy; neither answer nor log holds the secret."""
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong-secret-value"}
    function = function_factory(**{**s3_server.environ, **wrong}, **urls(bucket))
    answer = function.send_event("e1", {"workflow": case("01_empty_save")})
    assert (answer.status, answer.json["code"]) == (503, "storage_unavailable")
    assert f"s3://{bucket}/results" in answer.json["error"]
    assert "wrong-secret-value" not in answer.body.decode() + function.log.read_text()

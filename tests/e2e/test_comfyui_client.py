"""One request with everything that a client of comfyui-api can ask for, against whichever engine is there."""

from __future__ import annotations

import base64
import io
import json
from contextlib import closing
from typing import TYPE_CHECKING

from PIL import Image
from standardwebhooks import Webhook

from tests.e2e.test_main_job import largest_difference, upscaled_reference
from tests.support.engine import case
from tests.support.processes import wait_until
from tests.support.webhooks import Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory
    from tests.support.storage import S3Server

SECRET = f"whsec_{base64.b64encode(b'x' * 24).decode()}"


def test_a_request_that_asks_for_everything(
    function_factory: FunctionFactory, s3_server: S3Server, model_files: Path
) -> None:
    """Input, model, conversion, upload into a bucket, signed webhook: the picture is right, and all of it is told."""
    bucket = s3_server.make_bucket()
    function = function_factory(
        **s3_server.environ,
        OUTPUT_URL_ALLOW=f"s3://{bucket}/exports",
        ALLOW_PRIVATE_NETWORKS="true",
        WEBHOOK_SECRET=SECRET,
    )
    function.put_upload("in_64x48.png")
    function.put_model("upscale_models", model_files / "upscale_models" / "tiny_srvgg_x2.safetensors")
    with Receiver() as receiver:
        body = {
            "prompt": case("10_upscale_srvgg"),
            "id": "order/4711",
            "convert_output": {"format": "webp", "options": {"lossless": True}},
            "s3": {"bucket": bucket, "prefix": "exports/ü "},
            "webhook_v2": receiver.url,
        }
        accepted = function.post("/prompt", body)
        assert (accepted.status, accepted.json["id"], accepted.json["status"]) == (202, "order/4711", "ok")
        wait_until(lambda: len(receiver.requests) == 1, what="the webhook", timeout_seconds=90)
        (request,) = receiver.requests
    Webhook(SECRET).verify(request.body, request.headers)
    told = json.loads(request.body)
    assert (told["type"], told["id"], told["s3"]["bucket"]) == ("prompt.complete", "order/4711", bucket), told
    (name,) = told["filenames"]
    assert told["images"] == [f"s3://{bucket}/exports/ü {name}"]
    assert told["stats"]["comfy_execution"]["duration"] >= 0
    assert set(told["stats"]["comfy_execution"]["nodes"]) <= set(body["prompt"])
    with closing(s3_server.make_client()) as client:
        answer = client.get_object(Bucket=bucket, Key=f"exports/ü {name}")
        with closing(answer["Body"]) as stream:
            data = stream.read()
    assert (answer["ContentType"], Image.open(io.BytesIO(data)).format) == ("image/webp", "WEBP")
    assert largest_difference(data, upscaled_reference()) <= 1
    assert function.post("/interrupt", {"id": "order/4711"}).status == 404

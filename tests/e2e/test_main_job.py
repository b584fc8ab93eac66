"""The main job over HTTP against the function as it runs in production."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageChops

from events import JOB_COMPLETED, JOB_FAILED
from function.job import derived_job_id
from tests.support.engine import DATA, case
from tests.support.function_process import EVENT_SOURCE, Background

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess


def upscaled_reference() -> Image.Image:
    """What the real core wrote for case 10."""
    return Image.open(DATA / "cases" / "ref" / "c10_00001_.png").convert("RGB")


def largest_difference(data: bytes, reference: Image.Image) -> int:
    """Largest difference of any channel of any pixel."""
    extrema = ImageChops.difference(Image.open(io.BytesIO(data)).convert("RGB"), reference).getextrema()
    return max(high for _low, high in extrema)


def test_an_event_runs_its_workflow_and_the_reply_names_the_stored_outputs(function: FunctionProcess) -> None:
    """A CloudEvent comes in, the upscaled image lies in storage, a completed event goes out."""
    answer = function.send_event("e1", {"workflow": case("10_upscale_srvgg"), "label": "my job"})

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/cloudevents+json")
    event = answer.json
    assert event["type"] == JOB_COMPLETED
    manifest = event["data"]
    assert manifest["job_id"] == derived_job_id(EVENT_SOURCE, "e1") == event["subject"]
    assert (manifest["status"], manifest["attempt"], manifest["label"]) == ("completed", 1, "my job")
    (output,) = manifest["outputs"]
    stored = (function.store / "results" / "outputs" / manifest["job_id"] / "1" / "c10_00001_.png").read_bytes()
    assert output["url"] == f"file://{function.store}/results/outputs/{manifest['job_id']}/1/c10_00001_.png"
    assert (output["width"], output["height"], output["media_type"]) == (128, 96, "image/png")
    assert (output["size_bytes"], output["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert largest_difference(stored, upscaled_reference()) <= 1
    assert json.loads(function.result_path("e1").read_bytes()) == manifest
    assert function.get(f"/jobs/{manifest['job_id']}").json["result"] == manifest
    assert function.get(f"/outputs/{manifest['job_id']}/1/c10_00001_.png").body == stored


def test_a_structured_event_is_the_same_job_as_a_binary_one(function: FunctionProcess) -> None:
    """The mode of the event does not change the job it identifies."""
    document = {"workflow": case("01_empty_save")}
    before = len(function.engine_history())
    binary = function.send_event("modes", document)
    envelope = {
        "specversion": "1.0",
        "id": "modes",
        "source": EVENT_SOURCE,
        "type": "dev.comfyfn.job.requested",
        "datacontenttype": "application/json",
        "data": document,
    }
    structured = function.post("/", envelope, {"Content-Type": "application/cloudevents+json"})
    assert structured.body == binary.body
    assert len(function.engine_history()) == before + 1


def test_a_redelivered_event_is_answered_from_the_manifest(function_factory: FunctionFactory) -> None:
    """The reply is the same to the byte and the engine runs once, also after a restart of the function."""
    function = function_factory()
    first = function.send_event("again", {"workflow": case("01_empty_save")})
    second = function.send_event("again", {"workflow": case("01_empty_save")})
    assert second.body == first.body
    assert len(function.engine_history()) == 1
    function.stop()
    function.start()
    assert function.send_event("again", {"workflow": case("01_empty_save")}).body == first.body
    assert function.engine_history() == {}


def test_prompt_answers_with_the_images_and_stores_nothing(function: FunctionProcess) -> None:
    """`POST /prompt` carries the files in base64 and leaves no trace in storage or in the engine's directories."""
    places = [function.store / "results", function.root / "data" / "input", function.root / "data" / "output"]
    before = [files_in(place) for place in places]
    answer = function.post("/prompt", {"prompt": case("10_upscale_srvgg"), "id": "mine"})
    assert answer.status == 200
    assert answer.json["id"] == "mine"
    assert answer.json["filenames"] == ["mine_c10_00001_.png"]
    assert largest_difference(base64.b64decode(answer.json["images"][0]), upscaled_reference()) <= 1
    assert answer.json["stats"]["total_time"] >= answer.json["stats"]["comfy_round_trip_time"]
    assert [files_in(place) for place in places] == before


def files_in(place: Path) -> set[Path]:
    """Everything in a directory but what the store keeps there for itself."""
    return {path for path in place.rglob("*") if not any(part.startswith(".comfyfn") for part in path.parts)}


def test_the_same_job_twice_gets_fresh_files_although_the_engine_caches(function: FunctionProcess) -> None:
    """A cached save node never answers with a file that is gone."""
    workflow = case("01_empty_save")
    images = [function.post("/prompt", {"prompt": workflow}).json["images"] for _ in range(3)]
    pixels = {Image.open(io.BytesIO(base64.b64decode(image))).tobytes() for (image,) in images}
    assert len(pixels) == 1


def test_inputs_come_as_data_uris_too(function: FunctionProcess) -> None:
    """A workflow may carry its image itself."""
    workflow = case("10_upscale_srvgg")
    image = base64.b64encode((DATA / "cases" / "in_64x48.png").read_bytes()).decode()
    workflow["1"]["inputs"]["image"] = f"data:image/png;base64,{image}"
    answer = function.post("/prompt", {"prompt": workflow})
    assert largest_difference(base64.b64decode(answer.json["images"][0]), upscaled_reference()) <= 1


def test_outputs_keep_their_subfolder_and_previews_are_left_out(function: FunctionProcess) -> None:
    """Case 06 saves into `sub/` and shows a preview: only the saved file is an output."""
    manifest = function.send_event("e6", {"workflow": case("06_preview_and_save")}).json["data"]
    assert [(output["subfolder"], output["filename"]) for output in manifest["outputs"]] == [("sub", "c06_00001_.png")]
    assert function.get(f"/outputs/{manifest['job_id']}/1/sub/c06_00001_.png").status == 200


def test_other_events_are_acknowledged_with_an_empty_answer(function: FunctionProcess) -> None:
    """A broker takes a non-empty answer that is no CloudEvent for a failure, so there is none."""
    answer = function.send_event("e1", {}, kind="com.example.other")
    assert (answer.status, answer.body) == (204, b"")


def test_progress_of_a_running_job_can_be_asked_for(function: FunctionProcess) -> None:
    """`GET /jobs/<id>` shows stage and fraction while the job runs."""
    job_id = derived_job_id(EVENT_SOURCE, "slow")
    call = Background(lambda: function.send_event("slow", {"workflow": slow_workflow()}))
    seen: list[dict[str, Any]] = []
    while call.running:
        status = function.get(f"/jobs/{job_id}")
        if status.status == 200:
            seen.append(status.json)
    assert call.join().json["type"] == JOB_COMPLETED
    fractions = [state["progress"]["fraction"] for state in seen if state["status"] == "running"]
    assert {state["status"] for state in seen} >= {"running"}
    assert fractions
    assert all(0 <= fraction <= 1 for fraction in fractions)


def slow_workflow(blurs: int = 12, size: int = 1024) -> dict[str, Any]:
    """A workflow that keeps the engine busy for seconds, in nodes short enough to be interrupted between."""
    workflow: dict[str, Any] = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": size, "height": size, "batch_size": 1, "color": 255}}
    }
    for number in range(1, blurs + 1):
        workflow[str(number)] = {
            "class_type": "ImageBlur",
            "inputs": {"image": [str(number - 1), 0], "blur_radius": 8, "sigma": 3.0},
        }
    workflow["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [str(blurs), 0], "filename_prefix": "slow"},
    }
    return workflow


@pytest.mark.parametrize(
    ("workflow", "says"),
    [
        ({"nodes": [], "links": [], "last_node_id": 1}, "Export (API)"),
        ({"1": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 8, "height": 8}}}, "no output node"),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, "NoSuchNode"),
        ({}, "no output node"),
    ],
)
def test_a_workflow_that_can_never_run_ends_in_a_failed_event(
    function: FunctionProcess, request: pytest.FixtureRequest, workflow: dict[str, Any], says: str
) -> None:
    """200 with a failed event and a manifest: delivering it again would not help."""
    event_id = request.node.name
    answer = function.send_event(event_id, {"workflow": workflow})
    assert answer.status == 200
    assert answer.json["type"] == JOB_FAILED
    assert answer.json["data"]["error"]["code"] == "invalid_workflow"
    assert says in answer.json["data"]["error"]["message"]
    assert function.result_path(event_id).exists()


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/prompt", b"{", 400, "not JSON"),
        ("/prompt", b"[]", 400, "valid dictionary"),
        ("/jobs", {"workflow": {}, "promt": 1, "colour": 2}, 400, "promt: unknown field; colour: unknown field"),
        ("/prompt", {"prompt": {"nodes": [], "links": []}}, 400, "Export (API)"),
        ("/", b"{}", 400, ""),
        ("/nowhere", b"{}", 404, "Not Found"),
        ("/health", b"{}", 405, "Method Not Allowed"),
    ],
)
def test_bad_requests_get_a_short_json_error(
    function: FunctionProcess, path: str, body: object, status: int, says: str
) -> None:
    """Status, one line, a code; no stack trace and no echo of headers."""
    answer = function.post(path, body, {"X-Secret": "s3cr3t-value", "Authorization": "Bearer s3cr3t-value"})
    assert answer.status == status
    assert says in answer.json["error"]
    assert answer.json["code"]
    assert b"s3cr3t-value" not in answer.body
    assert b"Traceback" not in answer.body


@pytest.mark.parametrize("path", ["/", "/prompt"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(function_factory: FunctionFactory, path: str, *, chunked: bool) -> None:
    """413, also for a client that sends everything before it reads; the connection is announced to end."""
    function = function_factory(MAX_BODY_SIZE_MB="1")
    connection = http.client.HTTPConnection("127.0.0.1", function.port, timeout=30)
    body = iter([b"x" * 1024] * 4096) if chunked else b"x" * 4 * 1024**2
    headers = {"Content-Type": "application/json"} | ({"Transfer-Encoding": "chunked"} if chunked else {})
    connection.request("POST", path, body=body, headers=headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "body_too_large")
    assert answer.headers["Connection"] == "close"
    connection.close()
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200

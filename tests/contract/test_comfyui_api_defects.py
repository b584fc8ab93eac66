"""What comfyui-api does wrong, and ours must not: one test for each defect that no other test would notice.

`tests/data/comfyui_api/defects.json` lists all of them with the tests that would.
"""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.e2e.test_clients_gone import outcomes, send, wait_for_admitted
from tests.e2e.test_main_job import slow_workflow
from tests.support.contract import two_files
from tests.support.engine import case
from tests.support.function_process import Background
from tests.support.processes import wait_until
from tests.support.webhooks import Receiver

if TYPE_CHECKING:
    from tests.support.function_process import FunctionFactory, FunctionProcess

SLOW = {"prompt": slow_workflow(60)}
NO_WAIT = {"Prefer": "respond-async"}


def interrupted(function: FunctionProcess, identity: str) -> int:
    """The status that an interrupt is answered with; its body must say the same."""
    answer = function.post("/interrupt", {"id": identity})
    assert answer.json == {"id": identity, "interrupted": "success" if answer.status == 200 else "failed"}
    return answer.status


def begun(function: FunctionProcess, document: dict[str, Any]) -> Background:
    """Send a prompt, and wait until the engine works on it."""
    call = Background(lambda: function.post("/prompt", document))
    wait_until(lambda: function.engine_runs() == 1, what="the engine's work")
    return call


def test_an_upload_that_fails_is_no_success(function_factory: FunctionFactory) -> None:
    """502 with the file's name, and no URL of an object that isn't there."""
    with Receiver(403) as receiver:
        url = f"http://127.0.0.1:{receiver.port}"
        function = function_factory(OUTPUT_URL_ALLOW=url, ALLOW_PRIVATE_NETWORKS="true")
        body = {"prompt": case("01_empty_save"), "id": "u", "http_upload": {"url_prefix": url}}
        answer = function.post("/prompt", body)
    assert (answer.status, answer.json["code"]) == (502, "upload_failed")
    assert "u_c01_00001_.png" in answer.json["error"]
    assert "images" not in answer.json


def test_outputs_of_every_kind_arrive_with_names_of_their_own(function: FunctionProcess) -> None:
    """The same name from two folders, an animation below folders, a text."""
    frames = {"width": 16, "height": 8, "batch_size": 3, "color": 255}
    animation = {"fps": 6.0, "lossless": True, "quality": 80, "method": "fastest", "filename_prefix": "films/a/clip"}
    workflow = two_files() | {
        "10": {"class_type": "EmptyImage", "inputs": frames},
        "11": {"class_type": "SaveAnimatedWEBP", "inputs": animation | {"images": ["10", 0]}},
        "12": {"class_type": "PreviewAny", "inputs": {"source": "hello"}},
    }
    answer = function.post("/prompt", {"prompt": workflow, "id": "k"}).json
    names = ["k_c01_00001_.png", "k_films/a/clip_00001_.webp", "k_sub/c01_00001_.png"]
    assert sorted(answer["filenames"]) == names
    kinds = {
        name: Image.open(io.BytesIO(base64.b64decode(image)))
        for name, image in zip(answer["filenames"], answer["images"], strict=True)
    }
    assert answer["texts"] == {"12": ["hello"]}
    for name in names:
        assert kinds[name].format == ("WEBP" if name.endswith("webp") else "PNG")


def test_a_queued_job_that_is_interrupted_never_runs(function_factory: FunctionFactory) -> None:
    """Its sender is told at once, while the other job goes on; the second interrupt finds nothing."""
    function = function_factory()
    running = begun(function, SLOW)
    queued = Background(lambda: function.post("/prompt", {"prompt": case("01_empty_save"), "id": "q"}))
    wait_for_admitted(function, 2)
    wait_until(lambda: interrupted(function, "q") == 200, what="the job's place in the queue")
    answer = queued.join()
    assert (answer.status, answer.json["code"]) == (422, "cancelled")
    assert running.running
    assert interrupted(function, "q") == 404
    assert running.join().status == 200
    assert len(function.engine_history()) == 1


def test_a_running_job_is_interrupted_by_the_id_of_its_client(function_factory: FunctionFactory) -> None:
    """The engine is free at once."""
    function = function_factory()
    call = begun(function, {"prompt": slow_workflow(200), "id": "mine"})
    assert interrupted(function, "mine") == 200
    answer = call.join()
    assert (answer.status, answer.json["code"]) == (422, "cancelled")
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200


def test_any_pod_interrupts_a_job_that_another_one_runs(function_factory: FunctionFactory) -> None:
    """By the client's id, or the one that it was given; its webhook is told."""
    gpu = function_factory(LEASE_SECONDS="4", ALLOW_PRIVATE_NETWORKS="true")
    api = function_factory(
        probe="/health",
        ENGINE="none",
        DISPATCH_URL=f"{gpu.url}/",
        RESULTS_URL=f"file://{gpu.store}/results",
        ALLOW_PRIVATE_NETWORKS="true",
    )
    with Receiver() as receiver:
        body = {"prompt": slow_workflow(200), "id": "far", "webhook_v2": receiver.url}
        assert api.post("/prompt", body).status == 202
        wait_until(lambda: gpu.engine_runs() == 1, what="the engine's work")
        assert interrupted(api, "far") == 200
        wait_until(lambda: len(receiver.requests) == 1, what="the webhook")
        document = json.loads(receiver.requests[0].body)
    assert (document["type"], document["id"], document["code"]) == ("prompt.failed", "far", "cancelled")
    second = gpu.post("/prompt", SLOW, NO_WAIT).json
    assert second["id"] == second["job_id"]
    assert interrupted(api, second["id"]) == 200
    assert interrupted(api, "far") == 404


def test_a_template_whose_client_goes_away_is_interrupted(function_factory: FunctionFactory) -> None:
    """As a prompt is: nothing is sent from the function to itself."""
    function = function_factory()
    target = function.store / "workflows" / "slow.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(slow_workflow(200)))
    connection = send(function, "/workflow/slow", {"input": {}})
    wait_until(lambda: function.engine_runs() == 1, what="the engine's work")
    connection.close()
    wait_until(lambda: outcomes(function) == ["client_gone"], what="the job's end")


def test_a_job_that_takes_too_long_is_interrupted_and_answered(function_factory: FunctionFactory) -> None:
    """504 at its deadline; the next job runs."""
    function = function_factory(DEADLINE_SECONDS="2")
    answer = function.post("/prompt", SLOW)
    assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200


def test_the_result_of_a_202_can_be_asked_for(function: FunctionProcess) -> None:
    """Also of one that failed: nothing that happens after the 202 is lost."""
    accepted = function.post("/prompt", {"prompt": case("01_empty_save"), "id": "later"}, NO_WAIT).json
    wait_until(lambda: function.get(accepted["urls"]["self"]).json["status"] == "completed", what="the job's end")
    (output,) = function.get(accepted["urls"]["self"]).json["result"]["outputs"]
    assert output["filename"] == "later_c01_00001_.png"


def test_secrets_of_a_request_are_in_no_answer_record_or_log(function_factory: FunctionFactory) -> None:
    """A password or a token for an upload is used, and kept nowhere; where it would have to be kept it is refused."""
    with Receiver() as receiver:
        host = f"127.0.0.1:{receiver.port}"
        function = function_factory(OUTPUT_URL_ALLOW=f"http://{host}", ALLOW_PRIVATE_NETWORKS="true")
        block = {"url_prefix": f"http://me:s3cr3t-value@{host}/in"}
        body = {"prompt": case("01_empty_save"), "id": "s", "http_upload": block}
        answer = function.post("/prompt", body, {"Idempotency-Key": "once"})
        assert (answer.status, answer.json["images"]) == (200, [f"http://{host}/in/s_c01_00001_.png"])
        assert receiver.requests[0].headers["authorization"].startswith("Basic ")
        later = function.post("/prompt", body | {"http_upload": block | {"async": True}})
        assert (later.status, later.json["location"]) == (400, "http_upload.url_prefix")
        hooked = function.post("/prompt", body | {"webhook_v2": receiver.url})
        assert hooked.status == 400
        assert len(receiver.requests) == 1
        auth = {"type": "bearer", "token": "s3cr3t-token"}
        credentials = [{"url_pattern": f"http://{host}/**", "auth": auth}]
        given = function.post("/prompt", body | {"credentials": credentials}, {"Idempotency-Key": "twice"})
        assert (given.status, given.json["images"]) == (200, answer.json["images"])
        assert receiver.requests[1].headers["authorization"] == "Bearer s3cr3t-token"
    seen = [answer.body, later.body, hooked.body, given.body, function.log.read_bytes()]
    records = [path.read_bytes() for path in (function.store / "results").rglob("*.json")]
    assert records
    for text in seen + records:
        assert b"s3cr3t" not in text


@pytest.mark.parametrize("identity", ["../../etc/x", "a/b", "..", "x\r\nEvil: 1", "ü" * 200, "a" * 256, "%date%"])
def test_an_id_of_any_form_stays_a_name(function: FunctionProcess, identity: str) -> None:
    """It comes back as it is; in file names, keys and headers stands what is safe there."""
    answer = function.post("/prompt", {"prompt": case("01_empty_save"), "id": identity}, NO_WAIT)
    assert (answer.status, answer.json["id"]) == (202, identity)
    status = answer.json["urls"]["self"]
    wait_until(lambda: function.get(status).json["status"] == "completed", what="the job's end")
    (output,) = function.get(status).json["result"]["outputs"]
    assert output["subfolder"] == ""
    assert output["filename"].isascii()
    assert output["filename"].endswith("_c01_00001_.png")
    assert len(output["filename"]) < 140


def test_ids_that_look_alike_as_names_do_not_share_files(function: FunctionProcess) -> None:
    """A name that had to be changed gets a digest of the id."""
    prompt = case("01_empty_save")
    names = [function.post("/prompt", {"prompt": prompt, "id": one}).json["filenames"] for one in ("a/b", "a_b", "a:b")]
    assert len({name for (name,) in names}) == 3


def test_names_are_the_id_alone_if_that_is_set(function_factory: FunctionFactory) -> None:
    """PREPEND_FILENAMES, as in comfyui-api; two savers do not get in each other's way."""
    function = function_factory(PREPEND_FILENAMES="false")
    workflow = two_files()
    workflow["4"] = case("01_empty_save")["1"] | {"inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}}
    workflow["3"]["inputs"]["images"] = ["4", 0]
    answer = function.post("/prompt", {"prompt": workflow, "id": "n"}).json
    assert sorted(answer["filenames"]) == ["n_00001_.png", "n_00002_.png"]
    assert answer["prompt"]["2"]["inputs"]["filename_prefix"] == "n"


def test_files_inside_a_request_are_not_sent_back(function: FunctionProcess) -> None:
    """The workflow in an answer says that there was one."""
    workflow = case("10_upscale_srvgg")
    image = base64.b64encode(io.BytesIO(png()).getvalue()).decode()
    workflow["1"]["inputs"]["image"] = f"data:image/png;base64,{image}"
    answer = function.post("/prompt", {"prompt": workflow})
    assert answer.status == 200, answer.body
    assert answer.json["prompt"]["1"]["inputs"]["image"] == "data:image/png;base64,..."


def png() -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()

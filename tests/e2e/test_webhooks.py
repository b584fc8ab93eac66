"""Webhooks end to end: processes, events, the command line."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families
from standardwebhooks import Webhook

from tests.e2e.test_command_line import comfyfn
from tests.support.engine import case
from tests.support.processes import wait_until
from tests.support.webhooks import Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess

SECRET = f"whsec_{base64.b64encode(b'x' * 24).decode()}"
SETTINGS = {"ALLOW_PRIVATE_NETWORKS": "true", "WEBHOOK_SECRET": SECRET}


def document(url: str) -> dict[str, Any]:
    """A job of a moment with a webhook."""
    return {"workflow": case("01_empty_save"), "label": "mine", "webhook": {"url": url}}


def tries(function: FunctionProcess, outcome: str) -> float:
    """How many tries of this process had this outcome."""
    families = text_string_to_metric_families(function.get("/metrics").body.decode())
    samples = [sample for family in families for sample in family.samples]
    counted = [
        one.value for one in samples if one.name == "comfyfn_webhooks_total" and one.labels["outcome"] == outcome
    ]
    return sum(counted)


def test_a_webhook_gets_the_reply_event_of_its_job(function_factory: FunctionFactory) -> None:
    """Byte for byte, signed, once, although the event is delivered again; and the end of an asynchronous job."""
    function = function_factory(**SETTINGS)
    with Receiver() as receiver:
        reply = function.send_event("1", document(receiver.url))
        assert reply.status == 200
        wait_until(lambda: tries(function, "delivered") == 1, what="the webhook")
        assert function.send_event("1", document(receiver.url)).body == reply.body
        (request,) = receiver.requests
        assert request.body == reply.body
        Webhook(SECRET).verify(request.body, request.headers)
        accepted = function.post("/jobs", document(f"{receiver.url}/second")).json
        wait_until(lambda: tries(function, "delivered") == 2, what="the second webhook")
        assert [one.target for one in receiver.requests] == ["/hook", "/hook/second"]
        assert json.loads(receiver.requests[1].body)["data"]["job_id"] == accepted["job_id"]
    assert "/hook" not in function.get(f"/jobs/{accepted['job_id']}").body.decode()
    assert "/hook" not in function.log.read_text()


def test_the_api_service_delivers_what_another_one_ran(function_factory: FunctionFactory) -> None:
    """It has no engine; its metrics count the webhook."""
    gpu = function_factory()
    api = function_factory(
        probe="/health",
        ENGINE="none",
        DISPATCH_URL=f"{gpu.url}/",
        RESULTS_URL=f"file://{gpu.store}/results",
        **SETTINGS,
    )
    with Receiver() as receiver:
        assert api.post("/jobs", document(receiver.url)).status == 202
        wait_until(lambda: tries(api, "delivered") == 1, what="the webhook")
        assert len(receiver.requests) == 1
    assert tries(gpu, "delivered") == 0


def test_dead_letters_are_listed_and_tried_again(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """The command needs only the place of the results; the function's next sweep sends what it brought back."""
    function = function_factory(**SETTINGS)
    results = {"RESULTS_URL": f"file://{function.store}/results"}
    with Receiver(404, 200) as receiver:
        job_id = function.post("/jobs", document(receiver.url)).json["job_id"]
        wait_until(lambda: tries(function, "dead") == 1, what="the dead letter")
        listed = comfyfn("webhooks", "ls", cwd=tmp_path, **results)
        assert f"http://127.0.0.1:{receiver.port}: HTTP 404\ndead letters: 1\n" in listed.stdout
        (letter,) = json.loads(comfyfn("webhooks", "ls", "--json", cwd=tmp_path, **results).stdout)
        assert (letter["job_id"], letter["status"], letter["tries"]) == (job_id, 404, 1)
        assert comfyfn("webhooks", "retry", cwd=tmp_path, **results).returncode == 2
        unknown = comfyfn("webhooks", "retry", "0" * 32, cwd=tmp_path, **results)
        assert (unknown.returncode, unknown.stderr) == (1, f"Error: there is no dead letter of job {'0' * 32}\n")
        again = comfyfn("webhooks", "retry", "--all", cwd=tmp_path, **results)
        assert (again.returncode, again.stdout) == (0, f"{job_id}: will be sent again\n")
        wait_until(lambda: tries(function, "delivered") == 1, what="the next sweep", timeout_seconds=90)
        assert len(receiver.requests) == 2
    assert json.loads(comfyfn("webhooks", "ls", "--json", cwd=tmp_path, **results).stdout) == []


def test_a_private_receiver_is_not_reached_unless_that_is_allowed(function_factory: FunctionFactory) -> None:
    """The job itself is done; the log says what to set."""
    function = function_factory()
    with Receiver() as receiver:
        assert function.post("/jobs", document(receiver.url)).status == 202
        wait_until(lambda: tries(function, "dead") == 1, what="the dead letter")
        assert receiver.requests == []
    assert "ALLOW_PRIVATE_NETWORKS=true" in function.log.read_text()


def test_webhooks_that_nobody_could_deliver_are_refused(function_factory: FunctionFactory) -> None:
    """A service that sends jobs nowhere looks after none; and a URL must be one."""
    function = function_factory(K_SERVICE="comfyfn")
    refused = function.send_event("1", document("https://shop.example/hook"))
    assert (refused.status, refused.json["code"]) == (501, "not_here")
    assert "set DISPATCH_URL" in refused.json["error"]
    assert function.engine_history() == {}
    bad = function.send_event("2", document("https://me:s3cr3t@shop.example/hook"))
    assert (bad.status, bad.json["code"]) == (400, "invalid_request")
    assert "s3cr3t" not in bad.body.decode() + function.log.read_text()


def test_a_job_with_a_webhook_must_be_one_that_its_record_can_run(function_factory: FunctionFactory) -> None:
    """A secret that only the request holds is refused, because another pod may have to see the job through."""
    function = function_factory(**SETTINGS)
    asked = document("http://127.0.0.1:1/")
    asked["workflow"]["9"] = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "https://h/m.sft?token=1"},
    }
    refused = function.send_event("1", asked)
    assert (refused.status, refused.json["code"]) == (400, "invalid_request")
    assert "the query of a URL may be a secret" in refused.json["error"]

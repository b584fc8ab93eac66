"""The HTTP contract of comfyui-api's clients, from data, against the function as it runs in production."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.contract import contract, differences, filled
from tests.support.engine import case
from tests.support.function_process import functions
from tests.support.processes import wait_until
from tests.support.webhooks import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionProcess
    from tests.support.storage import S3Server
    from tests.support.webhooks import Received

REQUESTS, WEBHOOKS = contract("requests"), contract("webhooks")
SECRET = f"whsec_{base64.b64encode(b'x' * 24).decode()}"


class Service:
    """A function with a receiver of webhooks and uploads, one that refuses, and a bucket for uploads."""

    def __init__(self, function: FunctionProcess, receiver: Receiver, places: dict[str, str], s3: S3Server) -> None:
        self.function = function
        self.receiver = receiver
        self.places = places
        self.s3 = s3

    def send(self, request: dict[str, Any]) -> tuple[int, Any]:
        """Send a request of the contract; status and JSON."""
        body = request.get("text", json.dumps(filled(request.get("body"), self.places))).encode()
        body = b" " * request["size"] if "size" in request else body
        headers = {"Content-Type": request.get("type", "application/json")}
        answer = self.function.post(request["path"], body, headers)
        return answer.status, answer.json

    def received(self, identity: str) -> list[Received]:
        """What the receiver got about the job with this id."""
        return [
            one for one in self.receiver.requests if one.method == "POST" and json.loads(one.body)["id"] == identity
        ]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Service]:
    """One service for all tests of the module."""
    with ExitStack() as closing_all:
        receiver, refusing = closing_all.enter_context(Receiver()), closing_all.enter_context(Receiver(403))
        start = closing_all.enter_context(functions(tmp_path_factory.mktemp("contract")))
        places = {
            "RECEIVER": f"http://127.0.0.1:{receiver.port}",
            "REFUSING": f"http://127.0.0.1:{refusing.port}",
            "BUCKET": s3_server.make_bucket(),
        }
        function = start(
            **s3_server.environ,
            OUTPUT_URL_ALLOW=f"s3://{places['BUCKET']},{places['RECEIVER']},{places['REFUSING']}",
            ALLOW_PRIVATE_NETWORKS="true",
            WEBHOOK_SECRET=SECRET,
            MAX_BODY_SIZE_MB="1",
        )
        put_template(function, "flat", case("01_empty_save"))
        put_template(function, "broken", {"workflow": 1})
        yield Service(function, receiver, places, s3_server)


def put_template(function: FunctionProcess, name: str, document: object) -> None:
    """Put a template where the function looks for it."""
    target = function.store / "workflows" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_answered_as_the_contract_says(service: Service, name: str) -> None:
    """Status and members; nothing in an error is a stack trace."""
    request = REQUESTS[name]
    status, answer = service.send(request)
    assert (status, differences(filled(request["answer"], service.places), answer)) == (request["status"], [])
    assert "Traceback" not in json.dumps(answer)
    if status < 400:
        assert len(answer.get("images", [])) == len(answer.get("filenames", []))
        for url in answer.get("images", []):
            assert exists(service, url)


def exists(service: Service, url: str) -> bool:
    """Whether an image that an answer names by a URL is where it says; base64 is there itself."""
    if url.startswith("s3://"):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        with closing(service.s3.make_client()) as client:
            return bool(client.head_object(Bucket=bucket, Key=key)["ContentLength"])
    if url.startswith("http"):
        return any(service.places["RECEIVER"] + one.target == url for one in service.receiver.requests)
    return bool(base64.b64decode(url, validate=True))


@pytest.mark.parametrize("name", WEBHOOKS)
def test_receivers_get_what_the_contract_says(service: Service, name: str) -> None:
    """One signed message for `webhook_v2`, one unsigned for each file of `webhook`, of a failure after the 202 too."""
    entry = WEBHOOKS[name]
    status, answer = service.send({"path": "/prompt", "body": entry["body"]})
    assert status == 202, answer
    expected = len(entry["signed"]) + len(entry["unsigned"])
    wait_until(lambda: len(service.received(answer["id"])) >= expected, what="the webhooks")
    found: dict[bool, list[Any]] = {True: [], False: []}
    for one in service.received(answer["id"]):
        found[is_signed(one)].append(json.loads(one.body))
    found[False].sort(key=lambda document: document.get("filename", ""))
    wanted = {True: entry["signed"], False: entry["unsigned"]}
    assert differences(filled(wanted[True], service.places), found[True]) == []
    assert differences(filled(wanted[False], service.places), found[False]) == []


def is_signed(request: Received) -> bool:
    """Whether a request has a signature, which must then be good."""
    assert request.headers["content-type"] == "application/json"
    if "webhook-signature" not in request.headers:
        return False
    try:
        Webhook(SECRET).verify(request.body, request.headers)
    except WebhookVerificationError as error:
        raise AssertionError("the signature is not good") from error
    return True

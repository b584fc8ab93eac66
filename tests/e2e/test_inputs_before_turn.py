"""Input files come before it is their job's turn on the GPU, which others have meanwhile."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from events import JOB_FAILED
from function.job import derived_job_id
from tests.contract.test_comfyui_api_defects_inputs import RED, colors, saving
from tests.e2e.test_clients_gone import outcomes, send, wait_for_admitted
from tests.e2e.test_serving import start_slow_job
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.https import HttpsServer, ServedFile
from tests.support.pictures import picture
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionFactory, FunctionProcess

SETTINGS = {"ALLOW_PRIVATE_NETWORKS": "true", "LEASE_SECONDS": "600"}


@pytest.fixture
def host() -> Iterator[HttpsServer]:
    """Somebody else's server with one picture."""
    with HttpsServer("http") as host:
        host.files["/photo.png"] = ServedFile(picture(color="red"), headers={})
        yield host


@contextmanager
def held(host: HttpsServer) -> Iterator[dict[str, Any]]:
    """A workflow whose input does not arrive before the block ends, or before its server is told to send it."""
    hold = host.files["/photo.png"].hold = threading.Event()
    try:
        yield workflow(host)
    finally:
        hold.set()


def workflow(host: HttpsServer) -> dict[str, Any]:
    """A workflow that loads the picture."""
    return saving(host.url("/photo.png", "127.0.0.1"))


def wait_until_asked(host: HttpsServer) -> None:
    """Wait until somebody wants the picture."""
    wait_until(lambda: bool(host.requests), what="the request for the input")


def start(function_factory: FunctionFactory, host: HttpsServer) -> FunctionProcess:
    """A function that may fetch from the server."""
    return function_factory(**SETTINGS, MODEL_URL_ALLOW=f"127.0.0.1:{host.port}")


def test_inputs_come_while_another_job_runs(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """The job that waits has its file when its turn comes."""
    function = start(function_factory, host)
    running = start_slow_job(function, blurs=30)
    waiting = Background(lambda: function.post("/prompt", {"prompt": workflow(host)}))
    wait_until(lambda: bool(list((function.root / "data" / "input").rglob("photo.png"))), what="the input")
    assert (function.engine_runs(), running.running, waiting.running) == (1, True, True)
    assert running.join().status == 200
    assert colors(waiting.join()) == [RED]


def test_a_job_that_waits_for_its_inputs_leaves_the_gpu_to_others(
    function_factory: FunctionFactory, host: HttpsServer
) -> None:
    """A slow server holds up nobody else's job."""
    function = start(function_factory, host)
    with held(host) as slow:
        waiting = Background(lambda: function.post("/prompt", {"prompt": slow}))
        wait_until_asked(host)
        assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200
        assert waiting.running
    assert colors(waiting.join()) == [RED]


def test_a_pod_that_shuts_down_waits_for_no_inputs(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """The sender is told to try elsewhere, for a stored job too, and nothing says that the job was begun."""
    function = start(function_factory, host)
    with held(host) as slow:
        waiting = [
            Background(lambda: function.post("/prompt", {"prompt": slow})),
            Background(lambda: function.send_event("shut", {"workflow": slow})),
        ]
        wait_until(lambda: len(host.requests) == 2, what="both requests for the input")
        function.signal(signal.SIGTERM)
        answers = [call.join() for call in waiting]
    assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(503, "1")] * 2
    assert not list((function.store / "results").rglob("attempt-*"))


def test_a_client_that_goes_away_wants_no_inputs(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """Its job ends at once, and its directory is gone."""
    function = start(function_factory, host)
    with held(host) as slow:
        connection = send(function, "/prompt", {"prompt": slow})
        wait_until_asked(host)
        connection.close()
        wait_for_admitted(function, 0)
    assert outcomes(function) == ["client_gone"]
    assert list((function.root / "data" / "input").iterdir()) == []


def test_a_job_that_waits_for_its_inputs_can_be_cancelled(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """At once, by its id."""
    function = start(function_factory, host)
    with held(host) as slow:
        waiting = Background(lambda: function.send_event("stop", {"workflow": slow}))
        wait_until_asked(host)
        path = f"/jobs/{derived_job_id(EVENT_SOURCE, 'stop')}"
        assert function.get(path).json["progress"]["stage"] == "inputs"
        assert function.post(f"{path}/cancel", {}).json["status"] == "failed"
        answer = waiting.join()
    assert (answer.json["type"], answer.json["data"]["error"]["code"]) == (JOB_FAILED, "cancelled")


def test_an_input_that_can_not_be_had_is_a_failed_attempt(function_factory: FunctionFactory, host: HttpsServer) -> None:
    """Of a stored job; it is claimed first, because another pod may be at it, and the engine runs nothing."""
    function = start(function_factory, host)
    missing = saving(host.url("/nowhere.png", "127.0.0.1"))
    first, second = (function.send_event("missing", {"workflow": missing}) for _ in range(2))
    assert (first.json["type"], first.json["data"]["attempt"]) == (JOB_FAILED, 1)
    assert "node 10" in first.json["data"]["error"]["message"]
    assert first.body == second.body
    assert len(list((function.store / "results").rglob("attempt-1.json"))) == 1

"""Clients that close their connection before the answer, and whose job goes first."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

from events import JOB_COMPLETED
from tests.e2e.test_main_job import slow_workflow
from tests.e2e.test_serving import start_slow_job
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from tests.support.function_process import FunctionFactory, FunctionProcess

EVENT_HEADERS = f"ce-specversion: 1.0\r\nce-type: dev.comfyfn.job.requested\r\nce-source: {EVENT_SOURCE}\r\n"


def send(function: FunctionProcess, path: str, document: object, headers: str = "") -> socket.socket:
    """Send a request on a connection of its own and leave the answer unread."""
    body = json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: f\r\nContent-Type: application/json\r\n{headers}"
    connection = socket.create_connection(("127.0.0.1", function.port))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def outcomes(function: FunctionProcess) -> list[str]:
    """How the jobs ended, in order, by the log."""
    return [record["outcome"] for record in function.log_records("job ended")]


def was_interrupted(entry: dict[str, Any]) -> bool:
    """What the engine's history says of a run."""
    return any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])


def wait_for_admitted(function: FunctionProcess, count: int) -> None:
    """Wait until so many jobs wait or run."""
    wait_until(lambda: f"comfyfn_jobs_admitted {count}.0".encode() in function.get("/metrics").body, what="admission")


def test_a_job_whose_client_goes_away_while_it_waits_never_reaches_the_engine(
    function_factory: FunctionFactory,
) -> None:
    """It leaves the queue while the other job still runs; its end is counted and logged."""
    function = function_factory()
    running = start_slow_job(function)
    connections = [
        send(function, "/prompt", {"prompt": case("01_empty_save")}),
        send(function, "/", {"workflow": case("01_empty_save")}, EVENT_HEADERS + "ce-id: gone\r\n"),
    ]
    wait_for_admitted(function, 3)
    for connection in connections:
        connection.close()
    wait_for_admitted(function, 1)
    assert running.running
    assert outcomes(function) == ["client_gone", "client_gone"]
    assert b'comfyfn_jobs_total{outcome="client_gone"} 2.0' in function.get("/metrics").body
    assert running.join().json["type"] == JOB_COMPLETED
    assert len(function.engine_history()) == 1
    again = function.send_event("gone", {"workflow": case("01_empty_save")})
    assert (again.json["type"], again.json["data"]["attempt"]) == (JOB_COMPLETED, 1)


def test_an_unstored_job_whose_client_goes_away_is_interrupted(function_factory: FunctionFactory) -> None:
    """The engine is interrupted within a second and runs the next job."""
    function = function_factory()
    connection = send(function, "/prompt", {"prompt": slow_workflow(blurs=200, size=256)})
    wait_until(lambda: function.engine_runs() == 1, what="the engine's work")
    connection.close()
    closed = time.monotonic()
    wait_until(lambda: len(function.engine_history()) == 1, what="the interruption", timeout_seconds=10)
    assert time.monotonic() - closed < 1.0
    (entry,) = function.engine_history().values()
    assert was_interrupted(entry)
    wait_for_admitted(function, 0)
    assert outcomes(function) == ["client_gone"]
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200


def test_a_stored_job_goes_on_without_its_client_and_answers_the_redelivery(
    function_factory: FunctionFactory,
) -> None:
    """The redelivery gets the manifest of the one run there was."""
    function = function_factory()
    connection = send(function, "/", {"workflow": slow_workflow()}, EVENT_HEADERS + "ce-id: kept\r\n")
    wait_until(lambda: function.engine_runs() == 1, what="the engine's work")
    connection.close()
    wait_until(lambda: function.result_path("kept").exists(), what="the manifest")
    wait_for_admitted(function, 0)
    again = function.send_event("kept", {"workflow": slow_workflow()})
    assert (again.json["type"], again.json["data"]["attempt"]) == (JOB_COMPLETED, 1)
    assert len(function.engine_history()) == 1
    assert outcomes(function) == ["completed"]


def test_a_connection_is_used_again_after_a_job_and_holds_pipelined_requests(function_factory: FunctionFactory) -> None:
    """Watching takes nothing from a connection: the request sent behind a running job is answered after it."""
    function = function_factory()
    with send(function, "/prompt", {"prompt": case("01_empty_save")}) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.endswith(b"}")


def test_an_interactive_job_overtakes_a_waiting_event(function_factory: FunctionFactory) -> None:
    """While a job runs an event and then a prompt arrive: the prompt runs first."""
    function = function_factory()
    running = start_slow_job(function)
    event = Background(lambda: function.send_event("patient", {"workflow": case("01_empty_save")}))
    wait_for_admitted(function, 2)
    prompt = Background(lambda: function.post("/prompt", {"prompt": case("01_empty_save"), "id": "hasty"}))
    wait_for_admitted(function, 3)
    assert [call.join().status for call in (running, event, prompt)] == [200, 200, 200]
    job_ids = [record["job_id"] for record in function.log_records("job ended")]
    assert job_ids[2] == event.join().json["subject"]

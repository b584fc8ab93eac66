"""How the server behaves beside a job: probes, floods, refusals, shutdown."""

from __future__ import annotations

import fcntl
import selectors
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from events import JOB_COMPLETED
from function.admission import MAX_STREAMS
from function.job import derived_job_id
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.processes import runs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fleet import Storage
    from tests.support.function_process import FunctionFactory, FunctionProcess

THREADS = 10 + MAX_STREAMS + 8  # ADMIT_LIMIT's default, streams, and the spare threads
PIPELINED = 2000
READ_AHEAD = 8192 // 35  # requests that gunicorn reads at a time


def start_slow_job(function: FunctionProcess, event_id: str = "slow", blurs: int = 12) -> Background:
    """Send a job that takes seconds and wait until the engine works on it."""
    call = Background(lambda: function.send_event(event_id, {"workflow": slow_workflow(blurs)}))
    path = f"/jobs/{derived_job_id(EVENT_SOURCE, event_id)}"
    wait_until(lambda: b'"executing"' in function.get(path).body, what="the engine's work")
    return call


def test_the_next_job_runs_while_outputs_are_stored(function_factory: FunctionFactory) -> None:
    """A job whose engine is done has let the GPU go, however long its storage takes."""
    function = function_factory(LEASE_SECONDS="600")
    with storing_job(function) as call:
        answer = function.post("/prompt", {"prompt": case("01_empty_save")})
        assert (answer.status, call.running) == (200, True)
    assert call.join().json["type"] == JOB_COMPLETED


@contextmanager
def storing_job(function: FunctionProcess) -> Iterator[Background]:
    """A job whose run has ended and whose outputs are not stored before the block ends; nor are its beats."""
    call = start_slow_job(function, blurs=30)  # it must not end before the lock is held
    with (function.store / "results" / ".comfyfn" / "lock").open("ab") as lock:  # nobody else writes there meanwhile
        fcntl.flock(lock, fcntl.LOCK_EX)
        wait_until(lambda: function.engine_runs() == 0, what="the end of the job's run")
        yield call


def test_probes_and_metrics_answer_while_a_job_runs(function_factory: FunctionFactory) -> None:
    """Their answers arrive before the job ends."""
    function = function_factory()
    call = start_slow_job(function)
    answers = [function.get(path) for path in ("/health", "/ready", "/metrics")]
    assert call.running
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert b"comfyfn_jobs_admitted 1.0" in answers[2].body
    assert call.join().json["type"] == JOB_COMPLETED


def test_clients_that_never_pause_leave_a_thread_to_others(function: FunctionProcess) -> None:
    """As many connections as there are threads, each with a thousand requests on its way: a probe passes them."""
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    answered: dict[socket.socket, int] = {}
    with ExitStack() as closing, selectors.DefaultSelector() as selector:

        def read() -> None:
            for key, _ in selector.select(0.1):
                answered[key.fileobj] += key.fileobj.recv(65_536).count(b"HTTP/1.1 200")

        for _ in range(THREADS):
            connection = closing.enter_context(socket.create_connection(("127.0.0.1", function.port), 60))
            connection.sendall(request * PIPELINED)
            selector.register(connection, selectors.EVENT_READ)
            answered[connection] = 0
        while not all(answered.values()):
            read()
        probe = Background(lambda: function.get("/health"))
        while probe.running:
            read()
        assert probe.join().status == 200
        assert max(answered.values()) < PIPELINED - READ_AHEAD


def test_probes_answer_under_a_flood_of_four_times_as_many_requests_as_threads(
    function_factory: FunctionFactory,
) -> None:
    """The limit's worth of jobs is admitted, the rest is refused at once with 429, and probes get through."""
    function = function_factory()
    first = start_slow_job(function)
    prompt = {"prompt": case("01_empty_save")}
    flood = [Background(lambda: function.post("/prompt", prompt)) for _ in range(4 * THREADS)]
    answers = [function.get(path) for path in ("/health", "/ready") for _ in range(3)]
    assert first.running
    assert {answer.status for answer in answers} == {200}
    assert first.join().json["type"] == JOB_COMPLETED
    ended = [call.join() for call in flood]
    refused = [answer for answer in ended if answer.status == 429]
    assert {answer.status for answer in ended} == {200, 429}
    assert f"comfyfn_jobs_refused_total {len(refused)}.0" in function.get("/metrics").body.decode()
    assert len(refused) >= 4 * THREADS - 2 * 10
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert function.post("/prompt", prompt).status == 200


def test_connections_that_send_nothing_do_not_hold_up_probes(function_factory: FunctionFactory) -> None:
    """Idle connections, more than there are threads, and half-sent bodies leave threads for the probes."""
    function = function_factory()
    address = ("127.0.0.1", function.port)
    kind = b"Content-Type: application/json"
    head = b"POST /prompt HTTP/1.1\r\nHost: f\r\n%s\r\nContent-Length: 1000\r\n\r\n{" % kind
    sockets = [socket.create_connection(address) for _ in range(10)]
    try:
        for connection in sockets:
            connection.sendall(head)
        wait_until(lambda: b"comfyfn_jobs_admitted 10.0" in function.get("/metrics").body, what="ten half bodies")
        assert function.get("/health").status == 200
        assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 429
    finally:
        for connection in sockets:
            connection.close()
    wait_until(lambda: b"comfyfn_jobs_admitted 0.0" in function.get("/metrics").body, what="the end of the bodies")
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200


def test_readiness_follows_the_queue_depth_only_when_asked_to(function_factory: FunctionFactory) -> None:
    """With MAX_QUEUE_DEPTH=1 one running job makes `/ready` 503, and `/health` stays 200."""
    function = function_factory(MAX_QUEUE_DEPTH="1")
    call = start_slow_job(function)
    assert (function.get("/ready").status, function.get("/health").status) == (503, 200)
    assert call.join().status == 200
    assert function.get("/ready").status == 200


def test_the_same_event_delivered_twice_at_once_runs_once(function_factory: FunctionFactory) -> None:
    """The second delivery is told that the job runs (409, which brokers retry)."""
    function = function_factory()
    call = start_slow_job(function)
    second = function.send_event("slow", {"workflow": slow_workflow()})
    assert (second.status, second.json["code"]) == (409, "job_running")
    assert call.join().json["type"] == JOB_COMPLETED
    assert len(function.engine_history()) == 1


def test_sigterm_refuses_connections_sends_waiting_jobs_away_and_lets_the_running_one_finish(
    function_factory: FunctionFactory,
) -> None:
    """The waiting job gets its 503 before the running one ends; nothing is left behind."""
    function = function_factory()
    running = start_slow_job(function)
    waiting = Background(lambda: function.send_event("waiting", {"workflow": case("01_empty_save")}))
    path = f"/jobs/{derived_job_id(EVENT_SOURCE, 'waiting')}"
    wait_until(lambda: b'"queued"' in function.get(path).body, what="the waiting job")
    engine = function.engine_pid
    function.signal(signal.SIGTERM)
    answer = waiting.join()
    assert running.running
    assert (answer.status, answer.json["code"]) == (503, "draining")
    assert running.running
    with pytest.raises(ConnectionRefusedError):
        wait_for_refusal(function.port)
    assert running.join().json["type"] == JOB_COMPLETED
    assert function.result_path("slow").exists()
    assert function.wait(10) == 0
    assert not runs(engine)


def test_open_streams_leave_threads_for_the_probes(function_factory: FunctionFactory) -> None:
    """With every job and every stream that may be open, probes answer; one stream more is refused."""
    function = function_factory(ADMIT_LIMIT="1", LEASE_SECONDS="600")
    job_id = derived_job_id(EVENT_SOURCE, "slow")
    request = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: f\r\n\r\n".encode()
    with ExitStack() as streams:
        running = start_slow_job(function, blurs=30)
        for _ in range(MAX_STREAMS):
            stream = streams.enter_context(socket.create_connection(("127.0.0.1", function.port)))
            stream.sendall(request)
            assert stream.recv(65_536).startswith(b"HTTP/1.1 200")
        assert [function.get(path).status for path in ("/health", "/ready")] == [200, 200]
        assert function.get(f"/jobs/{job_id}/events").status == 429
        assert running.running
    assert running.join().json["type"] == JOB_COMPLETED


def test_an_open_stream_does_not_hold_up_the_shutdown(function_factory: FunctionFactory) -> None:
    """It ends in order, whatever becomes of its job, and its client finds another pod."""
    function = function_factory(probe="/health", ENGINE="none", DISPATCH_URL="http://127.0.0.1:9/")
    job_id = function.post("/jobs", {"workflow": case("01_empty_save")}).json["job_id"]
    with socket.create_connection(("127.0.0.1", function.port), timeout=20) as stream:
        stream.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: f\r\n\r\n".encode())
        told = b""
        while b"event: status" not in told:
            told += stream.recv(65_536)
        function.signal(signal.SIGTERM)
        while more := stream.recv(65_536):
            told += more
    assert told.endswith(b"\r\n0\r\n\r\n")
    assert function.wait(15) == 0


def test_clients_that_close_their_connections_do_not_cost_a_running_job_its_end(
    function_factory: FunctionFactory,
) -> None:
    """A probe that keeps no connection, as curl and kubelet don't, is counted once: SIGTERM still waits for the job."""
    function = function_factory()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", function.port)) as probe:
            probe.sendall(b"GET /health HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n")
            assert probe.recv(65_536).startswith(b"HTTP/1.1 200")
    running = start_slow_job(function)
    function.signal(signal.SIGTERM)
    assert running.join().json["type"] == JOB_COMPLETED
    assert function.wait(20) == 0


def wait_for_refusal(port: int) -> None:
    """Connect until the port refuses; it closes within moments of the signal."""
    for _ in range(200):
        socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.01)


def test_a_job_that_outlasts_the_drain_time_is_stopped_and_can_run_elsewhere(
    function_factory: FunctionFactory,
) -> None:
    """After DRAIN_SECONDS the engine is interrupted and the sender told 503; no manifest is written."""
    function = function_factory(DRAIN_SECONDS="0")
    running = start_slow_job(function)
    function.signal(signal.SIGTERM)
    answer = running.join()
    assert (answer.status, answer.json["code"]) == (503, "draining")
    assert function.wait(15) == 0
    assert not function.result_path("slow").exists()


def test_a_job_whose_outputs_are_being_stored_outlives_the_drain_time(function_factory: FunctionFactory) -> None:
    """It has no run to be interrupted, so it ends well and is answered; a job that has the GPU meanwhile is stopped."""
    function = function_factory(DRAIN_SECONDS="0", LEASE_SECONDS="600")
    with storing_job(function) as stored:
        other = slow_workflow(30, size=1056)  # of another size, or the engine has it all in its cache
        running = Background(lambda: function.post("/prompt", {"prompt": other}))
        wait_until(lambda: function.engine_runs() == 1, what="the next job's run")
        function.signal(signal.SIGTERM)
        answer = running.join()
        assert (answer.status, answer.json["code"]) == (503, "draining")
        assert stored.running
    assert stored.join().json["type"] == JOB_COMPLETED
    assert function.result_path("slow").exists()
    assert function.wait(15) == 0


def test_another_pod_takes_a_job_at_once_whose_pod_shut_down(
    function_factory: FunctionFactory, storage: Storage
) -> None:
    """Long before the lease would end: the attempt was handed back, and nothing of it is left."""
    settings = {**storage.environ, "LEASE_SECONDS": "600"}
    first, second = function_factory(**settings, DRAIN_SECONDS="0"), function_factory(**settings)
    running = start_slow_job(first, "handed back")
    first.signal(signal.SIGTERM)
    assert (running.join().status, first.wait(15)) == (503, 0)
    job_id = derived_job_id(EVENT_SOURCE, "handed back")
    assert second.get(f"/jobs/{job_id}").json["status"] == "queued"
    assert storage.keys(f"outputs/{job_id}/") == []
    answer = second.send_event("handed back", {"workflow": slow_workflow()})
    assert (answer.status, answer.json["type"], answer.json["data"]["attempt"]) == (200, JOB_COMPLETED, 2)
    assert storage.manifest_is_whole(answer.json["data"])
    records = [key.rpartition("/")[2] for key in storage.keys(f"jobs/{job_id}/")]
    assert [name for name in records if not name.endswith(".beat")] == [
        "attempt-1.json",
        "attempt-1.returned",
        "attempt-2.json",
        "job.json",
        "result.json",
    ]


def test_ctrl_c_ends_the_function_and_its_engine(function_factory: FunctionFactory) -> None:
    """SIGINT on the laptop leaves no process."""
    function = function_factory()
    engine = function.engine_pid
    function.signal(signal.SIGINT)
    function.wait(15)
    wait_until(lambda: not runs(engine), what="the engine's end")


def test_a_bad_setting_stops_the_start_with_one_line(function_factory: FunctionFactory) -> None:
    """The line names variable, value and what is allowed."""
    with pytest.raises(AssertionError, match=r"Error: ADMIT_LIMIT='none': expected a whole number from 1 to \d+\n"):
        function_factory(ADMIT_LIMIT="none")

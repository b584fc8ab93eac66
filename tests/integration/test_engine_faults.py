"""A real engine process that dies, hangs, or answers badly at every stage of a run: the error, and the next run.

The client reaches the engine through a proxy that can spoil each of its answers.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import uuid
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from function.engine.api import EngineApi
from function.engine.client import EngineBusyError, EngineClient
from function.engine.command import EngineCommand
from function.engine.engine import Engine
from function.engine.supervisor import Supervisor
from function.engine.views import view_file
from function.errors import (
    ComfyfnError,
    DeadlineExceededError,
    EngineUnavailableError,
    InvalidWorkflowError,
    NodeFailedError,
)
from function.telemetry import Metrics, Progress
from tests.support.engine import ROOT
from tests.support.engine_proxy import MIB, EngineProxy, answer, flood, hang, proxied, say, trickle
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.engine_proxy import Fault

WITHIN_SECONDS = 5.0
"""How long after its deadline a run may end: two requests that the engine leaves unanswered, a second each, at most."""

RUBBISH: dict[str, Fault] = {
    "an error": answer(b"oops", status="500 Internal Server Error"),
    "another error": answer(b"", status="503 Service Unavailable"),
    "no JSON": answer(b"<html>"),
    "other JSON": answer(b"[1, 2]"),
    "deep JSON": answer(b"[" * 200_000),
    "no HTTP": say(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "nothing": say(b""),
    "half an answer": say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
    "bad chunks": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
}


def workflow(blurs: int = 0) -> dict[str, Any]:
    """A workflow that no cache knows but for one picture that is shown; each blur takes about a second."""
    color = uuid.uuid4().int % 2**24
    size = 1024 if blurs else 8
    nodes: dict[str, Any] = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": size, "height": size, "batch_size": 1, "color": color}},
        "known": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 7}},
        "shown": {"class_type": "PreviewImage", "inputs": {"images": ["known", 0]}},
    }
    for number in range(1, blurs + 1):
        inputs = {"image": [str(number - 1), 0], "blur_radius": 12, "sigma": 3.0}
        nodes[str(number)] = {"class_type": "ImageBlur", "inputs": inputs}
    inputs = {"images": [str(blurs), 0], "filename_prefix": "x"}
    return nodes | {"save": {"class_type": "SaveImage", "inputs": inputs}}


class Faulty:
    """An engine behind a proxy."""

    def __init__(self, base: Path, stack: ExitStack, *, busy_seconds: float = 0.5) -> None:
        self.metrics = Metrics()
        argv = (sys.executable, "-m", "function.engine.embedded", "--cpu", "--base-directory", str(base))
        self.supervisor = Supervisor(EngineCommand(argv=argv, cwd=ROOT), backoff_seconds=(0.01, 0.1))
        self.supervisor.start()
        stack.callback(self.supervisor.stop)
        self.proxy: EngineProxy = stack.enter_context(proxied(0))
        self.engine = Engine(self.supervisor, metrics=self.metrics, connect=self._connect, busy_seconds=busy_seconds)
        stack.callback(self.engine.close)
        self.supervisor.wait_ready(time.monotonic() + 60)
        self._show_known()

    def _show_known(self) -> None:
        """Let the engine know a part of the workflow, so that only its history has all of a run's outputs."""
        with closing(EngineApi("127.0.0.1", self.supervisor.state.port)) as api:
            shown = str(uuid.uuid4())
            api.submit(workflow(), prompt_id=shown, client_id="other", extra_data={}, timeout_seconds=20)
            wait_until(lambda: api.history(shown) is not None, what="the run")

    def _connect(self, host: str, port: int) -> EngineClient:
        self.proxy.target_port = port
        return EngineClient(host, self.proxy.port, interrupt_seconds=0.3, quiet_seconds=0.2, trusted_seconds=0.0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the engine's process."""
        os.kill(self.supervisor.pid, number)

    def run(self, blurs: int = 0, *, seconds: float = 20, **observers: Any) -> None:
        """Run a workflow; it ends by its deadline, well or not."""
        deadline = time.monotonic() + seconds
        try:
            self.engine.run(workflow(blurs), deadline=deadline, **observers)
        finally:
            assert time.monotonic() < deadline + WITHIN_SECONDS

    def fails(self, error: type[ComfyfnError], match: str = ".", **arguments: Any) -> None:
        """A run that ends with this error; the proxy then spoils nothing any more, and the next run succeeds."""
        with pytest.raises(error, match=match):
            self.run(**arguments)
        self.proxy.faults.clear()
        self.run()

    @property
    def starts(self) -> int:
        """How many engines were started."""
        return self.supervisor.generation


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    """An engine that answers, behind a proxy that spoils nothing yet."""
    with ExitStack() as stack:
        yield Faulty(tmp_path, stack)


def killing(faulty: Faulty) -> Fault:
    """The engine dies in place of an answer."""
    return lambda _: faulty.kill()


@pytest.mark.parametrize("request_line", ["POST /prompt", "GET /history"])
def test_an_engine_that_is_killed_in_place_of_an_answer(faulty: Faulty, request_line: str) -> None:
    """Before it takes the run, and after the run has ended but before its record is read."""
    faulty.proxy.once(request_line, killing(faulty))
    faulty.fails(EngineUnavailableError)
    assert faulty.starts == 2


def test_an_engine_that_is_killed_when_it_is_asked_for_a_connection(faulty: Faulty) -> None:
    """Nothing was submitted, so the run waits for the next engine and succeeds."""
    faulty.proxy.once("GET /ws", killing(faulty))
    faulty.run()
    assert faulty.starts == 2


def test_an_engine_that_is_killed_while_the_run_waits_in_its_queue(faulty: Faulty) -> None:
    """Another client's run is before it."""
    with closing(EngineApi("127.0.0.1", faulty.supervisor.state.port)) as api:
        other = str(uuid.uuid4())
        api.submit(workflow(12), prompt_id=other, client_id="other", extra_data={}, timeout_seconds=20)
    faulty.proxy.once("GET /history", killing(faulty))  # asked once the socket has been quiet
    faulty.fails(EngineUnavailableError)


def test_an_engine_that_is_killed_while_a_node_runs(faulty: Faulty) -> None:
    """As soon as the process is gone, whatever the socket says."""
    faulty.fails(EngineUnavailableError, "died", blurs=12, on_progress=once_executing(faulty.kill))


def once_executing(action: Callable[[], object]) -> Callable[[Progress], None]:
    """Do something when the first blur begins."""
    done: list[Progress] = []

    def see(progress: Progress) -> None:
        if progress.node_id == "1" and not done:
            done.append(progress)
            action()

    return see


def test_an_engine_that_is_killed_while_its_files_are_read(faulty: Faulty) -> None:
    """The reader is told so at once; nothing waits for bytes that can't come."""
    run = faulty.engine.run(workflow(), deadline=time.monotonic() + 20)
    faulty.proxy.once("GET /view", killing(faulty))
    with pytest.raises(EngineUnavailableError):
        view_file("127.0.0.1", faulty.proxy.port, run.files[0])
    faulty.run()


def test_a_hanging_engine_is_replaced_at_the_deadline(faulty: Faulty) -> None:
    """It is stopped in the middle of a run."""
    stop = partial(faulty.kill, signal.SIGSTOP)
    faulty.fails(DeadlineExceededError, blurs=12, seconds=3, on_progress=once_executing(stop))
    assert faulty.starts == 2


def test_an_engine_that_hung_while_nothing_ran_is_replaced(faulty: Faulty) -> None:
    """It takes connections but says nothing; the run that finds it so runs in the next one."""
    faulty.proxy.faults["GET /ws"] = hang
    started = time.monotonic()
    with pytest.raises(EngineUnavailableError):
        faulty.run(seconds=1)
    assert time.monotonic() - started < 3
    faulty.proxy.faults.clear()
    faulty.run()
    assert faulty.starts == 2


def test_a_busy_engine_is_not_replaced(tmp_path: Path) -> None:
    """While it answers nobody, as ComfyUI while it lists its nodes, runs end at their deadlines, and it stays."""
    with ExitStack() as stack:
        faulty = Faulty(tmp_path, stack, busy_seconds=60)
        faulty.proxy.faults["GET /ws"] = hang
        for _ in range(2):
            with pytest.raises(EngineBusyError):
                faulty.run(seconds=0.3)
        faulty.proxy.faults.clear()
        faulty.run()
        assert faulty.starts == 1


def test_an_engine_that_hangs_between_two_runs_is_replaced(faulty: Faulty) -> None:
    """A connection that was kept to it says nothing of it: it is asked for a sign of life, and nothing is submitted."""
    faulty.run()
    faulty.kill(signal.SIGSTOP)
    faulty.fails(EngineUnavailableError, seconds=1)
    assert faulty.starts == 2
    assert sum(line.startswith("POST /prompt") for line in faulty.proxy.seen) == 2


def test_connections_are_kept_from_run_to_run(faulty: Faulty) -> None:
    """A socket, and one connection for what is asked; one that is cut between two runs costs a new one."""
    faulty.run()
    faulty.run()
    assert [line for line in faulty.proxy.seen if line.startswith("GET /ws")] == faulty.proxy.seen[:1]
    faulty.proxy.cut()
    faulty.run()
    assert faulty.starts == 1


def test_a_socket_that_is_cut_in_mid_run_does_not_matter(faulty: Faulty) -> None:
    """The run is found by asking."""
    faulty.run(blurs=2, on_progress=once_executing(faulty.proxy.cut))
    assert faulty.starts == 1


def test_a_socket_that_is_cut_and_refused_from_then_on_does_not_matter(faulty: Faulty) -> None:
    """Nor does an engine that takes no socket any more."""

    def cut() -> None:
        faulty.proxy.faults["GET /ws"] = say(b"")
        faulty.proxy.cut()

    faulty.run(blurs=2, on_progress=once_executing(cut))
    assert faulty.starts == 1


@pytest.mark.parametrize("kind", RUBBISH)
@pytest.mark.parametrize("request_line", ["GET /ws", "POST /prompt", "GET /history"])
def test_rubbish_is_the_engines_fault(faulty: Faulty, request_line: str, kind: str) -> None:
    """The run may be tried again, and the engine that answers so is replaced."""
    faulty.proxy.faults = dict.fromkeys({request_line, "GET /history"}, RUBBISH[kind])
    faulty.fails(EngineUnavailableError, seconds=8)
    assert faulty.starts == 2


def test_a_workflow_that_the_engine_can_not_answer_is_the_workflows_fault(faulty: Faulty) -> None:
    """An engine that answers everything else is in order."""
    faulty.proxy.faults["POST /prompt"] = answer(b"oops", status="500 Internal Server Error")
    faulty.fails(InvalidWorkflowError, "HTTP 500")
    assert faulty.starts == 1


@pytest.mark.parametrize("request_line", ["GET /ws", "POST /prompt", "GET /history"])
@pytest.mark.parametrize("fault", [trickle, hang])
def test_a_slow_answer_ends_with_the_run(faulty: Faulty, request_line: str, fault: Fault) -> None:
    """One byte after the other keeps a socket's timeout from ever passing."""
    faulty.proxy.faults = dict.fromkeys({request_line, "GET /history"}, fault)
    faulty.fails(ComfyfnError, seconds=2)
    assert faulty.starts == 2


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("request_line", "error"), [("POST /prompt", EngineUnavailableError), ("GET /history", NodeFailedError)]
)
def test_an_answer_of_600_mb_is_not_read(
    faulty: Faulty, request_line: str, error: type[ComfyfnError], *, announced: bool
) -> None:
    """Memory stays bounded; a record that is too large is the workflow's fault, which has put that into it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulty.proxy.once(request_line, flood(announced=announced))
    faulty.fails(error, "larger than 32 MiB")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 150 * MIB


def test_a_message_that_is_too_large_costs_the_socket_alone(faulty: Faulty) -> None:
    """The run is found by asking."""
    text = "x" * (20 * MIB)
    source = {"1": {"class_type": "PreviewAny", "inputs": {"source": text}}}
    run = faulty.engine.run(source, deadline=time.monotonic() + 60)
    assert run.texts == {"1": [text]}

"""A real receiver of webhooks and uploads whose answers a test decides, and a process that sends webhooks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from function.handover import WebhookTarget
from function.job import Job, JobResult, random_job_id
from function.jobs.records import JobRecords
from function.storage import open_store
from function.storage.connecting import ConnectionRules
from function.webhooks.delivery import Webhooks
from function.webhooks.letters import Letters
from function.webhooks.records import WebhookRecords
from function.webhooks.schedule import Schedule
from function.webhooks.sending import Sender

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from function.storage.objects import ObjectStore

SECRET = b"a secret of twenty-four b"
HERE = ConnectionRules(allow_private=True, plain_http=True)


@dataclass(frozen=True, slots=True)
class Received:
    """One request that came in; header names are in lower case."""

    target: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


class Receiver:
    """Answers POST and PUT with one status after the other, the last one again and again.

    Attributes:
        answers: Statuses; 0 holds the request until `release` and then answers 200.
        location: What redirects point to.
        requests: What came in.
    """

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers) or [200]
        self.location = ""
        self.requests: list[Received] = []
        self.release = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for every answer."""
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, request: Received) -> int:
        """What a request is answered with."""
        with self._lock:
            self.requests.append(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A sender that hangs up is part of some tests."""


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, receiver: Receiver, *arguments: Any) -> None:
        self._receiver = receiver
        super().__init__(*arguments)

    def do_POST(self) -> None:
        """Take a webhook."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers["content-length"]))
        status = self._receiver.take(Received(self.path, headers, body, self.command))
        if not status:
            self._receiver.release.wait()
        self.send_response(status or 200)
        if self._receiver.location:
            self.send_header("Location", self._receiver.location)
        self.end_headers()

    do_PUT = do_POST  # noqa: N815  (the name that the base class looks for)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def trickling(tls: ssl.SSLContext | None) -> Iterator[int]:
    """The port of a server that answers a request with a line that never ends, a byte every few milliseconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_trickle, args=(listener, tls))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def _trickle(listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    accepted, _ = listener.accept()
    with suppress(OSError), tls.wrap_socket(accepted, server_side=True) if tls else accepted as connection:
        connection.sendall(b"HTTP/1.1 ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.01)


def make_webhooks(
    store: ObjectStore, *, pauses: tuple[float, ...] | None = None, outcomes: list[str] | None = None, **changes: Any
) -> Webhooks:
    """Webhooks over a store, as one process has them; `changes` replaces arguments of `Webhooks`.

    Args:
        store: Where the records lie.
        pauses: Between tries, in place of the default ones, without jitter.
        outcomes: Gets the outcome of each try.
        changes: See above.
    """
    arguments = {
        "send": Sender(HERE, secrets=(SECRET,)).post,
        "write": Letters(store).write,
        "count": (outcomes if outcomes is not None else []).append,
        "schedule": Schedule() if pauses is None else Schedule(pauses, jitter=0),
    }
    return Webhooks(JobRecords(store), WebhookRecords(store), **(arguments | changes))


def ended_job(store: ObjectStore, *urls: str, **changes: Any) -> JobResult:
    """The result of a job with webhooks that has just ended and is still open; `changes` replaces fields of it."""
    records = JobRecords(store)
    workflow = {"1": {"class_type": "X", "inputs": {"text": "s3cret"}}}
    job = Job(random_job_id(), workflow, webhooks=tuple(map(WebhookTarget, urls)))
    records.submit(job)
    result = JobResult(job.job_id, "completed", 1, "mine", "2026-01-02T03:04:05.678Z", timings={"total": 0.1})
    return records.finish(replace(result, **changes))


def _sweep_for_ever(url: str, pause_seconds: float) -> None:
    webhooks = make_webhooks(open_store(url), pauses=(pause_seconds,) * 8)
    while True:
        webhooks.sweep()
        time.sleep(0.05)


@contextmanager
def sweeping_process(
    store: ObjectStore, environ: dict[str, str], *, pause_seconds: float
) -> Iterator[subprocess.Popen]:
    """A process of its own that sends what is due until it is killed, at the end of the block at the latest."""
    command = [sys.executable, "-m", "tests.support.webhooks", store.url, str(pause_seconds)]
    with subprocess.Popen(command, env=os.environ | environ) as process:
        try:
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    _sweep_for_ever(sys.argv[1], float(sys.argv[2]))

"""The dispatcher in front of whatever DISPATCH_URL may turn out to be."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from function.building import build_jobs
from function.config import read_settings
from function.errors import JobCancelledError
from function.job import Job, JobResult, random_job_id
from function.jobs.dispatch import Dispatcher
from function.jobs.ended import to_ended_event
from function.jobs.holders import Holders
from function.jobs.records import JobRecords
from function.telemetry import Metrics
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.storage.local import LocalStore

GRAPH = {"1": {"class_type": "X", "inputs": {}}}


@contextmanager
def answering(
    status: int, headers: list[str | None] | None = None, *, page: bytes = b"OK"
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every POST with this status and a page; its URL, and the bodies that came.

    Args:
        status: Of every answer.
        headers: Gets the `Authorization` of each request.
        page: Body of every answer.
    """
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if headers is not None:
                headers.append(self.headers["Authorization"])
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/cloudevents+json")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def dispatching(url: str, store: LocalStore) -> Iterator[tuple[Dispatcher, list[str]]]:
    """A dispatcher, and the jobs that it takes for ended."""
    ended: list[str] = []
    records, holders = JobRecords(store), Holders(store)
    dispatcher = Dispatcher(url, records, holders, answer_seconds=10, on_ended=ended.append)
    try:
        yield dispatcher, ended
    finally:
        dispatcher.stop()


def asynchronous(records: JobRecords) -> str:
    """The id of a job that was just recorded."""
    job = Job(random_job_id(), GRAPH, asynchronous=True)
    records.submit(job)
    return job.job_id


def test_a_200_of_anybody_is_no_end_of_a_job(local_store: LocalStore) -> None:
    """A page in the place of a function: the job stays open and is sent again, until it has a result."""
    records = JobRecords(local_store)
    job_id = asynchronous(records)
    with answering(200) as (url, bodies), dispatching(url, local_store) as (dispatcher, ended):
        dispatcher.dispatch(job_id)
        wait_until(lambda: len(bodies) >= 2, what="the job to be sent again")
        assert (ended, dispatcher.holds(job_id)) == ([], True)
        records.fail(job_id, JobCancelledError("over"))
        wait_until(lambda: not dispatcher.holds(job_id), what="the end of the job")
        assert ended == [job_id]


def end_of(job_id: str) -> bytes:
    """The event that tells of a job's end."""
    _, body = to_ended_event(JobResult(job_id, "completed", 1, "", finished_at="2026-03-02T09:30:00.000Z"))
    return body


def test_the_event_of_a_jobs_end_is_its_end(local_store: LocalStore) -> None:
    """Who ran the job has stored its result before it answers so: the records are not asked again."""
    records = JobRecords(local_store)
    job_id = asynchronous(records)
    with answering(200, page=end_of(job_id)) as (url, bodies), dispatching(url, local_store) as (dispatcher, ended):
        dispatcher.dispatch(job_id)
        wait_until(lambda: not dispatcher.holds(job_id), what="the end of the job")
    assert (ended, len(bodies)) == ([job_id], 1)


@pytest.mark.parametrize(
    "page", [end_of(random_job_id()), b"[]", b"{}", b"null", b"\xff", b"[" * 100_000], ids=range(6)
)
def test_any_other_answer_is_no_end_of_a_job(local_store: LocalStore, page: bytes) -> None:
    """The event of another job's end neither."""
    records = JobRecords(local_store)
    job_id = asynchronous(records)
    with answering(200, page=page) as (url, bodies), dispatching(url, local_store) as (dispatcher, ended):
        dispatcher.dispatch(job_id)
        wait_until(lambda: len(bodies) >= 2, what="the job to be sent again")
        assert (ended, dispatcher.holds(job_id)) == ([], True)


def test_a_job_without_webhooks_is_only_closed(local_store: LocalStore) -> None:
    """Nobody is to be told of its end, so its record is not read for that."""
    records = JobRecords(local_store)
    job_id = asynchronous(records)
    with answering(200, page=end_of(job_id)) as (url, _), dispatching(url, local_store) as (dispatcher, ended):
        dispatcher.dispatch(job_id, webhooks=False)
        wait_until(lambda: not dispatcher.holds(job_id), what="the end of the job")
    assert (ended, records.open_jobs().objects) == ([], ())


def test_a_job_that_is_gone_is_not_sent_for_ever(local_store: LocalStore) -> None:
    """Its retention is over: whoever answers 404 is right."""
    gone = random_job_id()
    with answering(404) as (url, bodies), dispatching(url, local_store) as (dispatcher, ended):
        dispatcher.dispatch(gone)
        wait_until(lambda: not dispatcher.holds(gone), what="the dispatcher to let go")
        assert (len(bodies), ended) == (1, [gone])


def test_a_job_that_a_broker_took_is_let_go(local_store: LocalStore) -> None:
    """It stays open, for a sweep that comes when nothing has come of it."""
    records = JobRecords(local_store)
    job_id = asynchronous(records)
    with answering(202) as (url, _), dispatching(url, local_store) as (dispatcher, ended):
        dispatcher.dispatch(job_id)
        wait_until(lambda: not dispatcher.holds(job_id), what="the dispatcher to let go")
    assert ended == []
    assert records.not_before(job_id)


@pytest.mark.parametrize(
    ("variable", "sent"), [("DISPATCH_URL", "Bearer first-of-the-tokens"), ("K_SINK", None)], ids=["ours", "Knative's"]
)
def test_the_first_token_is_for_the_url_that_the_operator_named(
    tmp_path: Path, variable: str, sent: str | None
) -> None:
    """A service with the same tokens lets the job in; a sink that Knative has injected gets none of them."""
    seen: list[str | None] = []
    with answering(202, seen) as (url, _):
        tokens = "first-of-the-tokens, second-of-the-tokens"
        settings = read_settings({"DATA_DIR": str(tmp_path), variable: url, "API_TOKENS": tokens, "ENGINE": "none"})
        jobs = build_jobs(settings, metrics=Metrics())
        try:
            jobs.submit(Job(random_job_id(), GRAPH, asynchronous=True))
            wait_until(lambda: len(seen) == 1, what="the job")
        finally:
            jobs.stop()
    assert seen == [sent]

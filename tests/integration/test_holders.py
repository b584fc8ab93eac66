"""Which open jobs are whose: several processes over one store, of which some are gone."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from function.job import Job, random_job_id
from function.jobs.dispatch import Dispatcher
from function.jobs.holders import FORSAKEN, Holders
from function.jobs.records import JobRecords
from function.jobs.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.storage.local import LocalStore

JOBS = 5


class Process:
    """What one process of the service has of jobs in storage."""

    def __init__(self, store: LocalStore, url: str) -> None:
        self.records = JobRecords(store)
        self.holders = Holders(store)
        self.dispatcher = Dispatcher(url, self.records, self.holders, answer_seconds=60, on_ended=self.records.close)
        self.sweep = Sweep(self.records, self.dispatcher, on_ended=self.records.close)

    def held(self, jobs: list[str]) -> list[str]:
        """Which of these it holds."""
        return [job_id for job_id in jobs if self.dispatcher.holds(job_id)]


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a function that is at work and answers only in the end."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            over.wait()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def process(store: LocalStore, url: str) -> Iterator[Process]:
    """One that is stopped in the end."""
    one = Process(store, url)
    try:
        yield one
    finally:
        one.dispatcher.stop()


def forsaken_jobs(store: LocalStore, root: Path) -> list[str]:
    """Jobs that were opened long ago."""
    records = JobRecords(store)
    jobs = [random_job_id() for _ in range(JOBS)]
    for job_id in jobs:
        records.submit(Job(job_id, {"1": {"class_type": "X", "inputs": {}}}, stored=True, asynchronous=True))
        make_old(root / "open" / job_id)
    return jobs


def make_old(path: Path) -> None:
    """Nobody has put it again for longer than counts."""
    then = time.time() - FORSAKEN.total_seconds() - 2
    os.utime(path, (then, then))


def notes(root: Path) -> list[Path]:
    """Of all processes."""
    return sorted((root / "held").glob("*"))


def test_jobs_that_another_process_holds_are_left_to_it(local_store: LocalStore, tmp_path: Path, silent: str) -> None:
    """However old their marks are: one note says it of all of them, from the sweep that took them on."""
    jobs = forsaken_jobs(local_store, tmp_path / "store")
    with process(local_store, silent) as first, process(local_store, silent) as second:
        first.sweep.run()
        second.sweep.run()
        assert (first.held(jobs), second.held(jobs)) == (jobs, [])
        assert len(notes(tmp_path / "store")) == 1


def test_jobs_of_a_process_that_died_are_taken_on(local_store: LocalStore, tmp_path: Path, silent: str) -> None:
    """Its note has grown old, and goes."""
    root = tmp_path / "store"
    jobs = forsaken_jobs(local_store, root)
    with process(local_store, silent) as dead, process(local_store, silent) as heir:
        dead.sweep.run()
        (note,) = notes(root)
        make_old(note)
        heir.sweep.run()
        assert heir.held(jobs) == jobs
        assert note not in notes(root)


def test_jobs_of_a_process_that_stops_are_free_at_once(local_store: LocalStore, tmp_path: Path, silent: str) -> None:
    """It takes its note back."""
    root = tmp_path / "store"
    jobs = forsaken_jobs(local_store, root)
    with process(local_store, silent) as leaving, process(local_store, silent) as heir:
        leaving.dispatcher.start()
        leaving.sweep.run()
        leaving.dispatcher.stop()
        assert notes(root) == []
        heir.sweep.run()
        assert heir.held(jobs) == jobs


def test_a_process_that_holds_nothing_notes_nothing(local_store: LocalStore, tmp_path: Path, silent: str) -> None:
    """And takes back its note when it holds nothing any more."""
    root = tmp_path / "store"
    with process(local_store, silent) as one:
        one.dispatcher.tell()
        assert notes(root) == []
        job_id = random_job_id()
        one.dispatcher.dispatch(job_id)
        one.dispatcher.tell()
        assert one.holders.held() == {job_id}
    one.dispatcher.tell()
    assert notes(root) == []


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"jobs": null}', b'{"hello": "world"}'])
def test_a_damaged_note_holds_nothing(local_store: LocalStore, tmp_path: Path, silent: str, data: bytes) -> None:
    """And keeps nobody from sweeping."""
    jobs = forsaken_jobs(local_store, tmp_path / "store")
    local_store.put("held/somebody", data)
    with process(local_store, silent) as one:
        one.sweep.run()
        assert one.held(jobs) == jobs

"""The cache's promises with real processes, which are killed at random points."""

from __future__ import annotations

import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from function.models.directory import PART_SUFFIX
from tests.support.models import PATIENCE_SECONDS, Bench, WorkerProcess, books, worker_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    WorkerFactory = Callable[..., WorkerProcess]

CAPACITY_BYTES = 30
PROCESSES = 3
IMPATIENT_SECONDS = 0.1
FAILURES = {"cache_busy", "model_missing", "model_too_large", "storage_unavailable"}

names = st.sampled_from("abcde")
sets_of_names = st.frozensets(names, min_size=1, max_size=3).map(sorted)
processes = st.integers(0, PROCESSES - 1)


@pytest.fixture(scope="module")
def start() -> Iterator[WorkerFactory]:
    """A way to start worker processes."""
    with worker_factory() as factory:
        yield factory


class Machine(RuleBasedStateMachine):
    """Jobs of several processes come and go, objects change, processes are killed; the promises hold all along."""

    def __init__(self, start: WorkerFactory) -> None:
        super().__init__()
        self.start = start
        self.root = Path(tempfile.mkdtemp())
        self.bench = Bench(self.root, capacity_bytes=CAPACITY_BYTES)
        self.observer = self.bench.cache()
        self.workers = [self.started(process) for process in range(PROCESSES)]
        self.jobs: dict[tuple[WorkerProcess, int], dict[str, bytes]] = {}
        self.content_of_etag: dict[str, bytes] = {}
        self.largest = dict.fromkeys("abcde", 0)
        self.versions = 0
        for name, size in zip("abcde", (4, 8, 10, 12, 16), strict=True):
            self.store_object(name, size)

    def started(self, process: int) -> WorkerProcess:
        """A new process; one of them asks storage for every job, the others once."""
        return self.start(self.bench, 3600.0 if process else 0.0)

    def teardown(self) -> None:
        """End everything."""
        for worker in self.workers:
            worker.kill()
        shutil.rmtree(self.root)

    @rule(name=names, size=st.integers(0, 16))
    def store_object(self, name: str, size: int) -> None:
        """Replace an object."""
        self.versions += 1
        content = (f"{self.versions:03}" * 6)[:size].encode()
        model = self.bench.put(name, content)
        self.largest[name] = max(self.largest[name], size)
        self.content_of_etag[self.bench.store.head(model.key).etag] = content

    @rule(process=processes, wanted=sets_of_names)
    def begin_job(self, process: int, wanted: list[str]) -> None:
        """A job begins and gets its models, or an error."""
        worker = self.workers[process]
        job = worker.begin(*wanted, patience_seconds=IMPATIENT_SECONDS)
        self.note(worker, job, worker.answer())

    @rule(wanted=st.lists(sets_of_names, min_size=PROCESSES, max_size=PROCESSES))
    def overlapping_jobs(self, wanted: list[list[str]]) -> None:
        """Jobs of all processes begin together, and each ends as soon as it has run, unless running ones bar it."""
        patience_seconds = IMPATIENT_SECONDS if self.jobs else PATIENCE_SECONDS
        for worker, mine in zip(self.workers, wanted, strict=True):
            worker.let_end(worker.begin(*mine, patience_seconds=patience_seconds))
        for worker, mine in zip(self.workers, wanted, strict=True):
            answer = worker.answer()
            if "etags" in answer:
                assert worker.answer()["ended"]
            else:
                too_large = sum(self.largest[name] for name in mine) > CAPACITY_BYTES  # a cached version may be larger
                assert answer["error"] in (FAILURES if self.jobs else {"model_too_large"})
                assert too_large or self.jobs

    @rule(number=st.integers(0, 9))
    def end_job(self, number: int) -> None:
        """One of the running jobs ends."""
        if self.jobs:
            worker, job = list(self.jobs)[number % len(self.jobs)]
            del self.jobs[worker, job]
            worker.end(job)

    @rule(process=processes)
    def kill(self, process: int) -> None:
        """A process is killed with its jobs, and another one starts."""
        worker = self.workers[process]
        worker.kill()
        self.jobs = {key: contents for key, contents in self.jobs.items() if key[0] is not worker}
        self.workers[process] = self.started(process)

    @rule(process=processes, wanted=sets_of_names, event=st.integers(0, 60))
    def kill_while_a_job_begins(self, process: int, wanted: list[str], event: int) -> None:
        """A process is killed while it decides, evicts, or puts files in place."""
        self.workers[process].die_at(event)
        self.workers[process].begin(*wanted, patience_seconds=IMPATIENT_SECONDS)
        self.workers[process].answer()
        self.kill(process)

    @rule(process=processes, wanted=sets_of_names)
    def kill_in_a_download(self, process: int, wanted: list[str]) -> None:
        """A process is killed in the middle of a download, if there is any."""
        self.workers[process].hold(hold=True)
        self.workers[process].begin(*wanted, patience_seconds=IMPATIENT_SECONDS)
        self.workers[process].answer()
        self.kill(process)

    def note(self, worker: WorkerProcess, job: int, answer: dict[str, object]) -> None:
        """Remember what a job was given, and that it is right."""
        etags = answer.get("etags")
        if isinstance(etags, dict):
            contents = {key: (self.bench.model_dir / key).read_bytes() for key in etags}
            assert contents == {key: self.content_of_etag[etag] for key, etag in etags.items()}
            self.jobs[worker, job] = contents
        else:
            assert answer["error"] in FAILURES

    @invariant()
    def capacity_holds(self) -> None:
        """Files, parts and reservations never exceed the capacity, on the disk as well as in anybody's books."""
        parts = sum(path.stat().st_size for path in self.bench.model_dir.rglob(f"*{PART_SUFFIX}"))
        assert sum(map(len, self.bench.visible().values())) + parts <= CAPACITY_BYTES
        assert self.observer.size_bytes <= CAPACITY_BYTES

    @invariant()
    def files_in_use_stay(self) -> None:
        """What a running job was given is there, unchanged."""
        for contents in self.jobs.values():
            assert contents == {key: (self.bench.model_dir / key).read_bytes() for key in contents}

    @invariant()
    def files_are_what_they_say(self) -> None:
        """Every visible file has the content of its ETag, and every part is on the books."""
        found = books(self.observer)
        for key, content in self.bench.visible().items():
            assert content == self.content_of_etag[found.present[key].record.etag]
        assert len(self.bench.parts()) == len(found.left)
        assert found.arriving == {}

    @invariant()
    def nothing_is_fetched_twice(self) -> None:
        """Nobody ever began to fetch what somebody was fetching, or what was there."""
        assert self.bench.fetches("double") == []


def test_promises(start: WorkerFactory) -> None:
    """The promises hold after every step of random histories."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Machine(start),
        settings=settings(max_examples=12, stateful_step_count=20, deadline=None, derandomize=True, database=None),
    )


def test_exactly_one_download(tmp_path: Path, start: WorkerFactory) -> None:
    """However many threads and processes need overlapping sets at once, each file is fetched once."""
    bench = Bench(tmp_path)
    models = {name: bench.put(name, name.encode() * 40) for name in "abcdefgh"}
    workers = [start(bench) for _ in range(PROCESSES)]
    gate = threading.Barrier(PROCESSES)

    def work(number: int) -> None:
        gate.wait()
        for turn in range(4):
            jobs = ["".join(models)[(number + turn + step) % 8 :][:3] for step in range(3)]
            for mine in jobs:
                workers[number].let_end(workers[number].begin(*mine))
            answers = [workers[number].answer() for _ in range(2 * len(jobs))]
            assert not [answer for answer in answers if "error" in answer]

    with ThreadPoolExecutor(PROCESSES) as pool:
        for job in [pool.submit(work, number) for number in range(PROCESSES)]:
            job.result(timeout=PATIENCE_SECONDS)
    assert sorted(bench.fetches("begin")) == sorted(bench.fetches("done")) == sorted(m.key for m in models.values())
    assert bench.visible() == {model.key: name.encode() * 40 for name, model in models.items()}

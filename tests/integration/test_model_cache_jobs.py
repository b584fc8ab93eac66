"""Several jobs at once, with real threads."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from function.errors import CacheBusyError, StorageUnavailableError
from tests.support.models import PATIENCE_SECONDS, Bench, arriving, hold, soon, use, wait_until, waiting_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.models.cache import ModelCache
    from function.models.references import ModelRef
    from function.telemetry import Progress


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store and model directory."""
    return Bench(tmp_path)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads of jobs; every test ends with none left behind."""
    before = set(threading.enumerate())
    with ThreadPoolExecutor(8) as executor:
        yield executor
    assert set(threading.enumerate()) <= before


def submit_waiting(pool: ThreadPoolExecutor, cache: ModelCache, *models: ModelRef) -> Future[dict[ModelRef, str]]:
    """A job that has taken its place in the queue."""
    place = waiting_jobs(cache) + 1
    job = pool.submit(use, cache, *models)
    wait_until(lambda: waiting_jobs(cache) == place)
    return job


def test_one_download_for_many_jobs(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """Jobs that need the same file at the same time share one download."""
    model, cache = bench.put("one", b"x" * 10), bench.cache()
    bench.store.gate.clear()
    jobs = [pool.submit(use, cache, model) for _ in range(6)]
    bench.store.held.get(timeout=PATIENCE_SECONDS)
    wait_until(lambda: len(bench.store.heads) == 6)
    assert bench.visible() == {}
    bench.store.gate.set()
    assert {job.result()[model] for job in jobs} == {bench.store.head(model.key).etag}
    assert bench.store.downloads == [model.key]
    assert bench.metric("cache_misses_total") == 1


def test_waiter_takes_a_broken_download_over(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """When a shared download breaks, its job gets the error, and a job that waits for the file brings it itself."""
    model, cache = bench.put("one", b"x" * 10), bench.cache()
    bench.store.gate.clear()
    bench.store.short = {model.key}
    first = pool.submit(use, cache, model)
    bench.store.held.get(timeout=PATIENCE_SECONDS)
    bench.store.short = set()
    seen: queue.Queue[Progress] = queue.Queue()
    second = pool.submit(use, cache, model, on_progress=seen.put)
    seen.get(timeout=PATIENCE_SECONDS)
    bench.store.gate.set()
    assert isinstance(first.exception(), StorageUnavailableError)
    assert second.result().keys() == {model}
    assert bench.visible() == {model.key: b"x" * 10}
    assert len(bench.store.downloads) == 2


def test_progress_of_somebody_elses_download(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """A job that waits for a file which another one brings shows how far that has come."""
    model, cache = bench.put("one", b"x" * 10), bench.cache()
    bench.store.gate.clear()
    first = pool.submit(use, cache, model)
    bench.store.held.get(timeout=PATIENCE_SECONDS)
    seen: queue.Queue[Progress] = queue.Queue()
    second = pool.submit(use, bench.cache(), model, on_progress=seen.put)
    assert seen.get(timeout=PATIENCE_SECONDS).fraction == 1.0  # all bytes are there, the file isn't yet
    assert not second.done()
    bench.store.gate.set()
    assert first.result() == second.result()


def test_files_of_a_job_arrive_side_by_side(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """Downloads of one job run at the same time, as many as are allowed."""
    models = [bench.put(name, b"x") for name in "abcd"]
    cache = bench.cache(parallel_downloads=3)
    bench.store.gate.clear()
    job = pool.submit(use, cache, *models)
    for _ in range(3):
        bench.store.held.get(timeout=PATIENCE_SECONDS)
    assert len(bench.store.downloads) == 3
    bench.store.gate.set()
    assert job.result().keys() == set(models)


def test_two_sets_and_room_for_one(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """Jobs with different sets of which only one fits take turns; none waits while it holds something."""
    bench.capacity_bytes = 20
    sets = [[bench.put(f"{name}{i}", name.encode() * 10) for i in range(2)] for name in "ab"]
    cache = bench.cache()

    def work(models: list[ModelRef]) -> None:
        for _ in range(5):
            with cache.ensure(models, deadline=soon()):
                assert all(bench.path(model).read_bytes() for model in models)

    for job in [pool.submit(work, models) for models in sets]:
        job.result(timeout=PATIENCE_SECONDS)
    assert cache.size_bytes == 20


def test_first_come_first_served(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """A small job that comes after a large one doesn't overtake it, so that the large one is not starved."""
    bench.capacity_bytes = 20
    running, large, small = (bench.put(name, b"x" * size) for name, size in (("a", 10), ("b", 20), ("c", 10)))
    cache = bench.cache()
    with ExitStack() as jobs:
        hold(jobs, cache, running)
        first = submit_waiting(pool, cache, large)
        second = submit_waiting(pool, cache, small)
        assert bench.store.downloads == [running.key]
    first.result()
    second.result()
    assert bench.store.downloads == [running.key, large.key, small.key]


@pytest.mark.parametrize("impatient", [0, 1])
def test_job_that_gives_up_leaves_the_queue(bench: Bench, pool: ThreadPoolExecutor, impatient: int) -> None:
    """A job whose deadline passes in the queue leaves its own place: the other one is served."""
    bench.capacity_bytes = 10
    running, *waiting = (bench.put(name, name.encode() * 10) for name in "abc")
    now = [0.0]
    cache = bench.cache(clock=lambda: now[0])

    def ask(model: ModelRef, deadline: float) -> None:
        with cache.ensure([model], deadline=deadline):
            pass

    with cache.ensure([running], deadline=100.0):
        jobs = []
        for number, model in enumerate(waiting):
            jobs.append(pool.submit(ask, model, 10.0 if number == impatient else 100.0))
            wait_until(lambda: waiting_jobs(cache) == len(jobs))
        now[0] = 11.0
        assert isinstance(jobs.pop(impatient).exception(), CacheBusyError)
        assert waiting_jobs(cache) == 1
    jobs[0].result()


def test_replacement_waits_for_the_running_job(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """A file is not replaced under a job that uses it; the job that wants the new content waits."""
    model, cache = bench.put("one", b"old"), bench.cache()
    with ExitStack() as jobs:
        old = hold(jobs, cache, model)
        bench.put("one", b"new")
        next_job = submit_waiting(pool, cache, model)
        assert bench.visible() == {model.key: b"old"}
    assert next_job.result() != old
    assert bench.visible() == {model.key: b"new"}


def test_failure_stops_the_other_downloads_of_the_job(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """When one file of a job fails its others stop, and a job that waits for one of them goes on with it."""
    broken, alone, shared = (bench.put(name, b"x") for name in ("broken", "alone", "shared"))
    bench.store.gate.clear()
    bench.store.short, bench.store.endless = {broken.key}, {alone.key, shared.key}
    cache = bench.cache()
    failing = pool.submit(use, cache, alone, shared, broken)
    for _ in range(3):
        bench.store.held.get(timeout=PATIENCE_SECONDS)
    seen: queue.Queue[Progress] = queue.Queue()
    other = pool.submit(use, cache, shared, on_progress=seen.put)
    seen.get(timeout=PATIENCE_SECONDS)
    bench.store.gate.set()
    assert isinstance(failing.exception(), StorageUnavailableError)
    bench.store.endless = set()
    assert other.result().keys() == {shared}
    assert bench.visible().keys() == {shared.key}
    assert not arriving(cache, alone)


def test_deadline_passes_while_files_arrive(bench: Bench) -> None:
    """A job whose deadline passes during a download ends retryably; the download stops and leaves its part."""
    model = bench.put("one", b"x" * 10)
    now = [0.0]
    cache = bench.cache(clock=lambda: now[0])
    bench.store.endless = {model.key}

    def on_progress(_progress: Progress) -> None:
        now[0] = 11.0

    with (
        pytest.raises(StorageUnavailableError, match="deadline"),
        cache.ensure([model], deadline=10.0, on_progress=on_progress),
    ):
        pass
    assert (bench.visible(), len(bench.parts()), cache.size_bytes) == ({}, 1, 10)
    assert not arriving(cache, model)


def test_many_jobs_over_a_small_cache(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """However jobs overlap, each sees its files whole, and the directory never holds more than the capacity."""
    bench.capacity_bytes = 50
    contents = {bench.put(f"m{i}", bytes([i]) * 10): bytes([i]) * 10 for i in range(8)}
    models, cache = list(contents), bench.cache()
    until = time.monotonic() + 1.0

    def work(number: int) -> None:
        for turn in range(25):
            mine = [models[(number + turn * step) % 8] for step in range(1, 4)]
            with cache.ensure(mine, deadline=soon()):
                assert cache.size_bytes <= 50
                assert all(bench.path(model).read_bytes() == contents[model] for model in mine)
            if time.monotonic() > until:
                return

    for job in [pool.submit(work, number) for number in range(6)]:
        job.result(timeout=PATIENCE_SECONDS)
    assert sum(map(len, bench.visible().values())) == cache.size_bytes <= 50
    assert all(not file.in_use for file in cache.files())

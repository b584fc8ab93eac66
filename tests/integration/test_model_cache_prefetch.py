"""Bringing models before their job comes."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.models import (
    PATIENCE_SECONDS,
    Bench,
    arriving,
    books,
    hold,
    ref,
    use,
    wait_until,
)

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
    """Threads of jobs."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def prefetched(cache: ModelCache, *models: ModelRef) -> None:
    """A prefetch that has ended."""
    cache.prefetch(models)
    for thread in cache._prefetcher._threads:
        thread.join(PATIENCE_SECONDS)


def test_brings_files_and_pins_nothing(bench: Bench) -> None:
    """What was prefetched is there for the job, and any other job may have its room."""
    bench.capacity_bytes = 20
    one, two, large = (bench.put(name, b"x" * size) for name, size in (("one", 10), ("two", 10), ("large", 20)))
    cache = bench.cache()
    prefetched(cache, one, two)
    assert bench.visible().keys() == {one.key, two.key}
    assert [file.in_use for file in cache.files()] == [False, False]
    use(cache, one, two)
    assert bench.metric("cache_hits_total") == 2
    use(cache, large)
    assert bench.visible().keys() == {large.key}


def test_returns_at_once_and_is_joined_by_its_job(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """A job that comes while its file is being prefetched waits for that download and shows its progress."""
    model, cache = bench.put("one", b"x" * 10), bench.cache()
    bench.store.gate.clear()
    cache.prefetch([model])
    bench.store.held.get(timeout=PATIENCE_SECONDS)
    seen: queue.Queue[Progress] = queue.Queue()
    job = pool.submit(use, cache, model, on_progress=seen.put)
    assert seen.get(timeout=PATIENCE_SECONDS).detail == model.filename
    bench.store.gate.set()
    assert job.result().keys() == {model}
    assert bench.store.downloads == [model.key]


def test_evicts_idle_files_only(bench: Bench) -> None:
    """A prefetch takes the room of files that nobody needs, and not of a running job's; it brings what fits."""
    bench.capacity_bytes = 30
    running, idle, small, large = (bench.put(n, b"x" * size) for n, size in (("a", 10), ("b", 12), ("c", 9), ("d", 15)))
    cache = bench.cache()
    use(cache, idle)
    with ExitStack() as jobs:
        hold(jobs, cache, running)
        prefetched(cache, small, large)
        assert bench.visible().keys() == {running.key, idle.key} - {idle.key} | {small.key}
        assert cache.size_bytes == 19


def test_first_named_comes_first(bench: Bench) -> None:
    """Where not all of a job's files fit, those are brought that it names first."""
    bench.capacity_bytes = 30
    models = [bench.put(name, b"x" * 10) for name in "hgfedcba"]
    prefetched(bench.cache(), *models)
    assert bench.visible().keys() == {model.key for model in models[:3]}


def test_keeps_what_the_next_job_needs(bench: Bench) -> None:
    """A prefetch for a later job doesn't evict what was prefetched for an earlier one, until that has come."""
    bench.capacity_bytes = 20
    running, second, third = (bench.put(name, b"x" * 10) for name in ("running", "second", "third"))
    cache = bench.cache()
    with ExitStack() as jobs:
        hold(jobs, cache, running)
        prefetched(cache, second)
        prefetched(cache, third)
        assert bench.visible().keys() == {running.key, second.key}
    use(cache, second)
    prefetched(cache, third)
    assert third.key in bench.visible()


def test_stops_when_a_job_waits_for_room(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """A prefetch in flight gives way to a job, also of another process, that needs its room; its part is evicted."""
    bench.capacity_bytes = 20
    wanted, early = bench.put("wanted", b"x" * 15), bench.put("early", b"x" * 10)
    cache, other_process = bench.cache(), bench.cache()
    bench.store.endless = {early.key}
    cache.prefetch([early])
    wait_until(lambda: arriving(cache, early))
    assert pool.submit(use, other_process, wanted).result(PATIENCE_SECONDS).keys() == {wanted}
    assert (bench.visible().keys(), bench.parts()) == ({wanted.key}, [])


def test_goes_on_for_a_job_that_waits_for_it(bench: Bench, pool: ThreadPoolExecutor) -> None:
    """A prefetch that a job waits for is finished although another job waits for room."""
    bench.capacity_bytes = 20
    wanted, early = bench.put("wanted", b"x" * 15), bench.put("early", b"x" * 10)
    cache = bench.cache()
    bench.store.endless = {early.key}
    cache.prefetch([early])
    wait_until(lambda: early.key in bench.store.downloads)
    seen: queue.Queue[Progress] = queue.Queue()
    joined = pool.submit(use, cache, early, on_progress=seen.put)
    seen.get(timeout=PATIENCE_SECONDS)
    waiting = pool.submit(use, cache, wanted)
    wait_until(lambda: not cache._line.empty)
    bench.store.endless = set()
    assert joined.result(PATIENCE_SECONDS).keys() == {early}
    assert waiting.result(PATIENCE_SECONDS).keys() == {wanted}
    assert sorted(bench.store.downloads) == [early.key, wanted.key]


def test_never_fails(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A model that is nowhere, and storage that is down, are left for the job to report."""
    caplog.set_level("INFO")
    cache = bench.cache()
    prefetched(cache, ref("nowhere"))
    bench.store.down = True
    prefetched(cache, bench.put("one", b"1"))
    bench.store.down = False
    bench.store.cut = {ref("two").key}
    prefetched(cache, bench.put("two", b"2"))
    assert [record.message.split(":")[0] for record in caplog.records] == ["prefetch"] * 3
    assert bench.visible() == {}


def test_stop(bench: Bench) -> None:
    """Stopping ends what is on its way, keeps its part, and lets nothing new begin."""
    model, cache = bench.put("one", b"x" * 10), bench.cache()
    written = threading.Event()
    bench.store.endless, bench.store.after_download = {model.key}, lambda _key: written.set()
    cache.prefetch([model])
    assert written.wait(PATIENCE_SECONDS)
    cache.stop()
    assert list(books(cache).left) == [model.key]
    cache.prefetch([model])
    assert not arriving(cache, model)


def test_read_only_directory(bench: Bench) -> None:
    """Where nothing can be written, nothing is prefetched."""
    cache = bench.cache(probe=lambda _directory: False)
    prefetched(cache, bench.put("one", b"1"))
    assert bench.store.heads == []

"""Several processes over one directory, some of which are killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.models import Bench, WorkerProcess, books, use, wait_until, waiting_jobs, worker_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    WorkerFactory = Callable[..., WorkerProcess]

HELD = {"held": True}


@pytest.fixture(scope="module")
def start() -> Iterator[WorkerFactory]:
    """A way to start worker processes."""
    with worker_factory() as factory:
        yield factory


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store and model directory."""
    return Bench(tmp_path)


def etag(bench: Bench, name: str) -> dict[str, str]:
    """What a job gets for one model."""
    key = f"checkpoints/{name}.safetensors"
    return {key: bench.store.head(key).etag}


def test_one_download_for_all_processes(bench: Bench, start: WorkerFactory) -> None:
    """Processes that need the same file at the same time share one download."""
    model = bench.put("one", b"0123456789")
    workers = [start(bench) for _ in range(4)]
    workers[0].hold(hold=True)
    workers[0].begin("one")
    assert workers[0].answer() == HELD
    for worker in workers[1:]:
        worker.begin("one")
    workers[0].hold(hold=False)
    assert [worker.answer()["etags"] for worker in workers] == [etag(bench, "one")] * 4
    assert bench.fetches("begin") == [model.key]
    assert {worker.size_bytes() for worker in workers} == {10}


def test_file_in_use_elsewhere_stays(bench: Bench, start: WorkerFactory) -> None:
    """What a job of one process uses is not evicted by another, and is as soon as the process is killed."""
    bench.capacity_bytes = 10
    one, two = bench.put("one", b"1" * 10), bench.put("two", b"2" * 10)
    running, waiting = start(bench), start(bench)
    running.begin("one")
    assert "etags" in running.answer()
    waiting.begin("two", patience_seconds=0.0)
    assert waiting.answer()["error"] == "cache_busy"
    waiting.begin("two")
    wait_until(lambda: waiting_jobs(bench.cache()) == 1)
    assert bench.visible().keys() == {one.key}
    running.kill()
    assert waiting.answer()["etags"] == etag(bench, "two")
    assert bench.visible() == {two.key: b"2" * 10}


def test_first_come_first_served_among_processes(bench: Bench, start: WorkerFactory) -> None:
    """Who waits longer goes first, whatever process it is of; one that is killed leaves the queue."""
    bench.capacity_bytes = 20
    for name, size in (("running", 10), ("large", 20), ("dead", 10), ("small", 10)):
        bench.put(name, b"x" * size)
    running, large, dead, small = (start(bench) for _ in range(4))
    running.begin("running")
    assert "etags" in running.answer()
    watcher = bench.cache()
    for place, (worker, name) in enumerate([(large, "large"), (dead, "dead"), (small, "small")], start=1):
        worker.begin(name)
        wait_until(lambda place=place: waiting_jobs(watcher) == place)  # type: ignore[misc]
    dead.kill()
    running.end(1)
    assert large.answer()["etags"] == etag(bench, "large")
    assert waiting_jobs(watcher) == 1
    large.end(1)
    assert small.answer()["etags"] == etag(bench, "small")
    assert [key.split("/")[1] for key in bench.fetches("begin")] == [
        f"{name}.safetensors" for name in ("running", "large", "small")
    ]


def test_cached_file_does_not_overtake_the_queue(bench: Bench, start: WorkerFactory) -> None:
    """While a job waits for room, another process's job doesn't get in before it, even if its file is there."""
    bench.capacity_bytes = 20
    for name, size in (("running", 10), ("idle", 10), ("large", 20)):
        bench.put(name, b"x" * size)
    first, second, third = (start(bench) for _ in range(3))
    third.run("idle")
    first.begin("running")
    assert "etags" in first.answer()
    second.begin("large")
    watcher = bench.cache()
    wait_until(lambda: waiting_jobs(watcher) == 1)
    third.begin("idle")
    wait_until(lambda: waiting_jobs(watcher) == 2)
    first.end(1)
    assert second.answer()["etags"] == etag(bench, "large")
    second.end(1)
    assert third.answer()["etags"] == etag(bench, "idle")


def test_another_process_goes_on_with_a_dead_ones_download(bench: Bench, start: WorkerFactory) -> None:
    """A process that waits for a file takes over when the one that brought it is killed, where it stopped."""
    model = bench.put("one", b"0123456789")
    bringing, waiting = start(bench), start(bench)
    bringing.begin("one")
    bringing.hold(hold=True)
    while bringing.answer() != HELD:  # it may have been done before
        bringing.hold(hold=False)
        bringing.begin("one")
    waiting.begin("one")
    bringing.kill()
    assert waiting.answer()["etags"] == etag(bench, "one")
    assert bench.visible() == {model.key: b"0123456789"}
    assert bench.fetches("begin") == [model.key] * 2
    assert bench.fetches("done") == [model.key]


def test_two_sets_and_room_for_one(bench: Bench, start: WorkerFactory) -> None:
    """Jobs of two processes with different sets of which only one fits both end."""
    bench.capacity_bytes = 20
    for name in ("a1", "a2", "b1", "b2"):
        bench.put(name, name.encode() * 5)
    sets = {start(bench): ("a1", "a2"), start(bench): ("b2", "b1")}
    for _ in range(3):
        for worker, names in sets.items():
            worker.let_end(worker.begin(*names))
        for worker in sets:
            assert "etags" in worker.answer()
            assert worker.answer()["ended"]


def test_no_lock_leaks_into_children(bench: Bench) -> None:
    """Programs that are started while a job holds locks don't inherit them."""
    cache = bench.cache()
    with cache.ensure([bench.put("one", b"1")], deadline=float("inf")), cache._line.place() as place:
        place.keep()
        own = str(cache._directory.own)
        locks = [path for path in Path("/proc/self/fd").iterdir() if os.path.realpath(path).startswith(own)]
        assert len(locks) == 2
        assert not any(os.get_inheritable(int(path.name)) for path in locks)


def test_killed_at_every_point(bench: Bench, start: WorkerFactory) -> None:
    """Wherever a process is killed while it evicts, replaces and brings files, the next one finds all in order."""
    bench.capacity_bytes = 30
    idle = bench.put("idle", b"i" * 10)
    new = bench.put("new", b"n" * 12)
    event, survived = 0, False
    while not survived:
        old = bench.put("replaced", f"{event:03}".encode() * 3)
        use(bench.cache(), idle, old)
        bench.put("replaced", b"r" * 14)
        doomed = start(bench)
        doomed.die_at(event)
        doomed.begin("replaced", "new")
        survived = "etags" in doomed.answer()
        doomed.kill()
        seen = {key: len(content) for key, content in bench.visible().items()}
        assert sum(seen.values()) + sum(path.stat().st_size for path in bench.model_dir.rglob("*-part")) <= 30
        assert bench.cache().size_bytes <= 30
        after = start(bench)
        assert after.run("replaced", "new")["etags"] == etag(bench, "replaced") | etag(bench, "new")
        assert bench.visible() == {old.key: b"r" * 14, new.key: b"n" * 12}
        assert (bench.parts(), after.size_bytes()) == ([], 26)
        after.kill()
        event += 1
    assert event > 40
    assert bench.fetches("double") == []
    assert [
        path.suffix for path in (bench.model_dir / ".comfyfn").iterdir() if path.suffix in {".tmp", ".arriving"}
    ] == []
    assert books(bench.cache()).size_bytes == 26

"""Models that come before their job has the GPU: prefetched, preloaded, and slower while the GPU works."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from function.engine.command import EngineCommand
from function.engine.engine import Engine
from function.engine.supervisor import Supervisor
from function.errors import DrainingError, ModelMissingError, QueueFullError
from function.models.background import BackgroundModels
from function.telemetry import Metrics
from tests.e2e.test_main_job import slow_workflow
from tests.support import replay
from tests.support.engine import case
from tests.support.function_process import Background, functions
from tests.support.models import Bench, use, wait_until
from tests.support.processes import child_pids
from tests.support.replay import Recording

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess

UPSCALER = "upscale_models/tiny_srvgg_x2.safetensors"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store and model directory."""
    return Bench(tmp_path)


def cache_hits_and_misses(function: FunctionProcess) -> tuple[float, float]:
    """What `/metrics` says."""
    families = text_string_to_metric_families(function.get("/metrics").body.decode())
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    return samples["comfyfn_cache_hits_total"], samples["comfyfn_cache_misses_total"]


def test_models_of_a_waiting_job_come_while_another_one_runs(
    function_factory: FunctionFactory, model_files: Path
) -> None:
    """The file is there before the first job ends; the second finds it, and a third fails as it would anyhow."""
    function = function_factory()
    function.put_upload("in_64x48.png")
    function.put_model("upscale_models", model_files / UPSCALER)
    broken = case("10_upscale_srvgg")
    for node in broken.values():
        if node["class_type"] == "UpscaleModelLoader":
            node["inputs"]["model_name"] = "nowhere.safetensors"
    first = Background(lambda: function.send_event("first", {"workflow": slow_workflow(24)}))
    wait_until(lambda: b"jobs_admitted 1.0" in function.get("/metrics").body)
    second = Background(lambda: function.send_event("second", {"workflow": case("10_upscale_srvgg")}))
    third = Background(lambda: function.send_event("third", {"workflow": broken}))
    wait_until((function.root / "data" / "models" / UPSCALER).exists)
    assert first.running
    assert not function.result_path("first").exists()
    assert first.join().json["data"]["status"] == "completed"
    data = second.join().json["data"]
    assert data["status"] == "completed"
    assert third.join().json["data"]["error"]["code"] == "model_missing"
    assert cache_hits_and_misses(function) == (1, 0)


def test_preloaded_models_are_there_without_a_job(tmp_path: Path, model_files: Path) -> None:
    """Each is logged in a line; one that is missing or refused stops neither start nor the others."""
    store = tmp_path / "models"
    (store / "upscale_models").mkdir(parents=True)
    (store / UPSCALER).write_bytes((model_files / UPSCALER).read_bytes())
    with functions(tmp_path) as start:
        function = start(
            MODELS_URL=f"file://{store}", PRELOAD_MODELS=f"vae/nowhere.safetensors, vae/../x.safetensors,{UPSCALER}"
        )
        wait_until(lambda: f"preload: model {UPSCALER} is here" in function.log.read_text())
        log = function.log.read_text()
        assert "preload: model vae/nowhere.safetensors: 'nowhere.safetensors' is neither in vae nor at" in log
        assert "preload: model vae/../x.safetensors: " in log
        assert (function.root / "data" / "models" / UPSCALER).exists()
        assert function.is_ready()


def test_the_transfer_process_runs_before_the_first_job(function: FunctionProcess) -> None:
    """Beside the engine, and so its imports are over by then."""
    wait_until(lambda: len(child_pids(function.worker_pid)) == 2)


def test_a_preload_evicts_nothing(bench: Bench) -> None:
    """It takes the room that is free; a prefetch of the same file makes some."""
    bench.capacity_bytes = 25
    here, small, large = bench.put("here", b"h" * 10), bench.put("small", b"s" * 10), bench.put("large", b"l" * 10)
    cache = bench.cache()
    use(cache, here)
    assert cache.preload(small)
    assert not cache.preload(large)
    assert bench.visible().keys() == {here.key, small.key}
    cache.prefetch([large])
    wait_until(lambda: large.key in bench.visible())
    assert bench.visible().keys() == {small.key, large.key}
    cache.stop()


def test_a_preload_of_a_missing_model_says_so(bench: Bench) -> None:
    """As a job would."""
    model = bench.put("gone", b"x")
    bench.store.delete(model.key)
    with pytest.raises(ModelMissingError, match=r"gone\.safetensors"):
        bench.cache().preload(model)


@pytest.fixture
def background(bench: Bench) -> Iterator[BackgroundModels]:
    """Two downloads at a time, over the bench's store; no thread of theirs is left in the end."""
    before = threading.active_count()
    made = BackgroundModels(bench.cache(), deadline_seconds=30, most=2)
    yield made
    made.stop()
    wait_until(lambda: threading.active_count() == before)


def idle() -> bool:
    """Whether no download by request runs."""
    return all(thread.name != "model-request" for thread in threading.enumerate())


def test_downloads_by_request_are_bounded(bench: Bench, background: BackgroundModels) -> None:
    """One more than may run is refused, one that runs already is not begun again, and afterwards there is room."""
    models = [bench.put(name, b"x") for name in "abc"]
    bench.store.gate.clear()
    for model in (models[0], models[1], models[0]):
        background.begin(model)
    for _ in range(2):
        bench.store.held.get(timeout=30)
    with pytest.raises(QueueFullError, match="2 downloads"):
        background.begin(models[2])
    with pytest.raises(QueueFullError):
        background.download(models[2])
    bench.store.gate.set()
    wait_until(lambda: len(bench.visible()) == 2)
    wait_until(idle)
    assert background.download(models[2]) == 1
    assert sorted(bench.store.downloads) == [model.key for model in models]


def test_stop_ends_a_download(bench: Bench, background: BackgroundModels) -> None:
    """Also one whose storage never comes to an end; none begins afterwards."""
    model = bench.put("endless", b"x")
    bench.store.endless = {model.key}
    background.begin(model)
    wait_until(lambda: bench.store.downloads == [model.key])
    background.stop()
    wait_until(idle)
    with pytest.raises(DrainingError):
        background.begin(model)


def test_transfers_make_way_while_a_workflow_runs(tmp_path: Path) -> None:
    """From when the engine is given it to when it is done, not while the engine boots."""
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def making_way() -> Iterator[None]:
        seen.append(("begin", supervisor.ready))
        yield
        seen.append(("end", supervisor.ready))

    recording = Recording.of_run("simple_fresh")
    supervisor = Supervisor(EngineCommand(argv=(sys.executable, replay.__file__), cwd=tmp_path))
    supervisor.start()
    try:
        engine = Engine(supervisor, metrics=Metrics(), while_running=making_way)
        engine.run(recording.workflow, deadline=time.monotonic() + 20)
        engine.close()
    finally:
        supervisor.stop()
    assert seen == [("begin", True), ("end", True)]

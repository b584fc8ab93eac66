"""A pod that is killed, at every stage of a job: another one completes it, and nothing half-done shows."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from events import JOB_COMPLETED
from function.job import derived_job_id
from tests.support.engine import DATA, case
from tests.support.fleet import LEASE_SECONDS, kill
from tests.support.function_process import EVENT_SOURCE, Background, functions
from tests.support.processes import wait_until
from tests.support.proxy import CUT, HttpProxy, Seen, let_pass
from tests.support.redelivery import deliver

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fleet import Storage
    from tests.support.function_process import FunctionFactory, FunctionProcess

MODEL = "upscale_models/tiny_srvgg_x2.safetensors"
INPUT = "in_64x48.png"
BLURS = 12


@dataclass(frozen=True)
class Stage:
    """When a pod is killed.

    Attributes:
        name: For people.
        request: The request to S3 at which it is killed: method and end of the path, `{id}` for the job's.
        after: Whether that request has its effect first.
        path: What it is killed for where the store is a directory, as soon as it is there.
        attempt: Which attempt the manifest is of in the end.
    """

    name: str
    request: tuple[str, str] = ("", "")
    after: bool = False
    path: str = ""
    attempt: int = 2


STAGES = [
    Stage("recorded", ("PUT", "/jobs/{id}/job.json"), after=True, path="store/results/jobs/{id}/job.json", attempt=1),
    Stage("inputs", ("GET", f"/uploads/{INPUT}"), path="pod/input/{id}/*/*", attempt=1),
    Stage("claimed", ("PUT", "/jobs/{id}/attempt-1.json"), after=True, path="store/results/jobs/{id}/attempt-1.json"),
    Stage("models", ("GET", f"/models/{MODEL}"), path=f"pod/models/{MODEL}"),
    Stage("submitted to the engine"),
    Stage("executing"),
    Stage("outputs storing", ("PUT", "/outputs/{id}/1/done_00001_.png"), path="pod/output/{id}/*"),
    Stage("before the manifest", ("PUT", "/jobs/{id}/result.json"), path="store/results/outputs/{id}/1/*"),
    Stage(
        "after the manifest, before the answer",
        ("PUT", "/jobs/{id}/result.json"),
        after=True,
        path="store/results/jobs/{id}/result.json",
        attempt=1,
    ),
]


def document() -> dict[str, Any]:
    """A job with a model, an input, and an engine run that can be met at work."""
    workflow = case("10_upscale_srvgg")
    (save,) = [node for node in workflow.values() if node["class_type"] == "SaveImage"]
    source = save["inputs"]["images"]
    for number in range(BLURS):
        workflow[f"blur{number}"] = {
            "class_type": "ImageBlur",
            "inputs": {"image": source, "blur_radius": 30, "sigma": 9.0},
        }
        source = [f"blur{number}", 0]
    save["inputs"] |= {"images": source, "filename_prefix": "done"}
    return {"workflow": workflow}


class Killer:
    """Kills a pod once, when a job of it comes to a stage."""

    def __init__(self, stage: Stage, victim: FunctionProcess, job_id: str) -> None:
        self._stage = stage
        self._victim = victim
        self._job_id = job_id
        self._once = threading.Lock()
        self.killed = threading.Event()

    def strike(self) -> None:
        """Kill it now."""
        if self._once.acquire(blocking=False):
            kill(self._victim)
            self.killed.set()

    def hook(self, *, after: bool) -> Callable[[Seen], str]:
        """For the proxy in front of S3."""
        method, ending = self._stage.request

        def look(seen: Seen) -> str:
            if seen.method != method or not seen.path.endswith(ending.format(id=self._job_id)):
                return ""
            self.strike()
            return CUT

        return look if method and after == self._stage.after else let_pass

    def watch(self, store: Path) -> None:
        """For what no request to S3 tells of."""
        give_up_at = time.monotonic() + 60
        while not self._is_there(store) and time.monotonic() < give_up_at:
            time.sleep(0.0005)
        self.strike()
        assert time.monotonic() < give_up_at, f"{self._stage.name}: never reached"

    def _is_there(self, store: Path) -> bool:
        with suppress(urllib3.exceptions.HTTPError, IndexError, FileNotFoundError):
            if self._stage.name == "submitted to the engine":
                return self._victim.engine_runs() > 0
            if self._stage.name == "executing":
                progress = self._victim.get(f"/jobs/{self._job_id}").json.get("progress")
                return bool(progress and progress["stage"] == "executing" and progress["fraction"] > 0.3)
            place, _, pattern = self._stage.path.format(id=self._job_id).partition("/")
            folder = store if place == "store" else self._victim.root / "data"
            return any(path.is_file() for path in folder.glob(pattern))
        return False


@dataclass
class Grave:
    """A place with one store and one pod that stays alive."""

    storage: Storage
    start: FunctionFactory
    survivor: FunctionProcess

    def kill_at(self, stage: Stage) -> None:
        """Have a fresh pod killed when its job comes to a stage."""
        job_id = derived_job_id(EVENT_SOURCE, stage.name)
        with ExitStack() as stack:
            environ = dict(self.storage.environ)
            if self.storage.server:
                proxy = stack.enter_context(HttpProxy([self.storage.server.endpoint_url]))
                environ["AWS_ENDPOINT_URL"] = proxy.url
            victim = self.start(**environ, LEASE_SECONDS=str(LEASE_SECONDS))
            killer = Killer(stage, victim, job_id)
            if self.storage.server:
                proxy.before, proxy.after = killer.hook(after=False), killer.hook(after=True)
            call = Background(lambda: victim.send_event(stage.name, document()))
            if not self.storage.server or not stage.request[0]:
                killer.watch(self.folder)
            assert killer.killed.wait(60), f"{stage.name}: never reached"
            with suppress(urllib3.exceptions.HTTPError):  # a directory's pod may have answered just before it died
                call.join()
                assert stage is STAGES[-1]

    @property
    def folder(self) -> Path:
        """Of a store in a directory."""
        return Path(self.storage.results.url.removeprefix("file://")).parent

    def next_attempt(self, stage: Stage) -> int:
        """The attempt after those that were claimed."""
        claims = self.storage.keys(f"jobs/{derived_job_id(EVENT_SOURCE, stage.name)}/attempt-")
        return 1 + sum(key.endswith(".json") for key in claims)

    def manifest(self, stage: Stage) -> dict[str, Any] | None:
        """What lies in the store."""
        key = f"jobs/{derived_job_id(EVENT_SOURCE, stage.name)}/result.json"
        return json.loads(self.storage.results.get(key, max_bytes=2**20)) if self.storage.keys(key) else None


@pytest.fixture
def grave(storage: Storage, tmp_path: Path, model_files: Path) -> Any:
    """The store with a model and an input in it, and a pod that nobody kills."""
    with functions(tmp_path) as start:
        put(storage, f"models/{MODEL}", (model_files / MODEL).read_bytes())
        put(storage, f"uploads/{INPUT}", (DATA / "cases" / INPUT).read_bytes())
        yield Grave(storage, start, start(**storage.environ, LEASE_SECONDS=str(LEASE_SECONDS)))


def put(storage: Storage, key: str, data: bytes) -> None:
    """Put an object beside the results."""
    storage.sibling(key.partition("/")[0]).put(key.partition("/")[2], data)


@pytest.mark.timeout(400)
def test_a_job_whose_pod_is_killed_at_any_stage_is_completed_by_another(grave: Grave) -> None:
    """Until then it has no result; then a whole one, of the next attempt if the engine may have been at work."""
    manifests, attempts = [], []
    for stage in STAGES:
        grave.kill_at(stage)
        manifests.append(grave.manifest(stage))
        attempts.append(grave.next_attempt(stage) - bool(manifests[-1]))
    assert [bool(manifest) for manifest in manifests] == [False] * (len(STAGES) - 1) + [True]
    if grave.storage.server:  # in a directory a pod comes a little further before it is dead
        assert attempts == [stage.attempt for stage in STAGES]
    for stage, attempt in zip(STAGES, attempts, strict=True):
        answer = deliver(lambda name=stage.name: grave.survivor.send_event(name, document()))
        assert (answer.status, answer.json["type"]) == (200, JOB_COMPLETED), stage.name
        manifest = answer.json["data"]
        assert manifest == grave.manifest(stage)
        assert manifest["attempt"] == attempt, stage.name
        assert [f"/{attempt}/done_" in output["url"] for output in manifest["outputs"]] == [True]
        assert grave.storage.manifest_is_whole(manifest)
    listed = {job["job_id"] for job in grave.survivor.get("/jobs?limit=100").json["jobs"]}
    assert listed >= {derived_job_id(EVENT_SOURCE, stage.name) for stage in STAGES}
    assert len(grave.survivor.engine_history()) == len(STAGES) - 1
    assert manifests[-1] == grave.manifest(STAGES[-1])


@pytest.mark.timeout(300)
def test_an_asynchronous_job_whose_service_is_killed_is_seen_through_by_a_sweep(grave: Grave) -> None:
    """The service dies before it could dispatch the job that it has answered 202 to."""
    with HttpProxy([grave.survivor.url]) as functions_proxy:
        service = grave.start(**grave.storage.environ, ENGINE="none", DISPATCH_URL=functions_proxy.url)

        def die(_seen: Seen) -> str:
            kill(service)
            return CUT

        functions_proxy.before = die
        with suppress(urllib3.exceptions.HTTPError):  # perhaps it dies before its answer
            service.post("/jobs", document())
        wait_until(lambda: len(functions_proxy.seen) > 0, what="the dispatch")
    (key,) = grave.storage.keys("open/")
    path = f"/jobs/{key.rpartition('/')[2]}"
    assert grave.survivor.get(path).json["status"] == "queued"
    wait_until(lambda: grave.survivor.get(path).json["status"] == "completed", what="the sweep", timeout_seconds=120)
    assert grave.storage.manifest_is_whole(grave.survivor.get(path).json["result"])
    wait_until(lambda: grave.storage.keys("open/") == [], what="the job to be seen off")

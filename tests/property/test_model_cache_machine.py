"""The cache's promises, over a real directory and random histories."""

from __future__ import annotations

import math
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from function.errors import (
    CacheBusyError,
    ComfyfnError,
    ModelMissingError,
    ModelTooLargeError,
    StorageUnavailableError,
)
from tests.support.models import Bench, ref

if TYPE_CHECKING:
    from function.models.cache import ModelCache
    from function.models.references import ModelRef

CAPACITY_BYTES = 30
IMAGE = ref("image")
IMAGE_CONTENT = b"from the image"

models = st.sampled_from([ref(name) for name in "abcde"])
sets_of_models = st.frozensets(models, min_size=1, max_size=3)
moments = st.sampled_from(["before_download", "after_download"])


@dataclass
class RunningJob:
    """A job that holds its models: what it was promised."""

    stack: ExitStack
    contents: dict[ModelRef, bytes]


class ModelCacheMachine(RuleBasedStateMachine):
    """Jobs come and go, objects change, downloads break, the process dies; the promises hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.bench = Bench(self.root, capacity_bytes=CAPACITY_BYTES)
        self.bench.path(IMAGE).parent.mkdir(parents=True)
        self.bench.path(IMAGE).write_bytes(IMAGE_CONTENT)
        self.cache = self.started()
        self.stored: dict[ModelRef, bytes] = {}
        self.content_of_etag: dict[str, bytes] = {}
        self.jobs: list[RunningJob] = []
        self.dead_jobs: list[RunningJob] = []
        self.versions = 0

    def started(self) -> ModelCache:
        """The cache of a new process; its clock passes every deadline as soon as a job has to wait for room.

        Files come one by one, so that every history is the same in each run.
        """
        return self.bench.cache(clock=lambda: math.inf if self.cache._queue else 0.0, parallel_downloads=1)

    def teardown(self) -> None:
        """End all jobs and remove the directory."""
        for job in self.jobs + self.dead_jobs:
            job.stack.close()
        shutil.rmtree(self.root)

    @rule(model=models, size=st.integers(0, 16))
    def store_object(self, model: ModelRef, size: int) -> None:
        """Put a new object or replace one; contents differ as far as their size allows."""
        self.versions += 1
        content = (f"{self.versions:03}" * 6)[:size].encode()
        self.bench.store.put(model.key, content)
        self.stored[model] = self.content_of_etag[self.bench.store.head(model.key).etag] = content

    @rule(model=models)
    def delete_object(self, model: ModelRef) -> None:
        """Storage loses an object; the cache may keep its file."""
        self.bench.store.delete(model.key)
        self.stored.pop(model, None)

    @rule(wanted=sets_of_models)
    def start_job(self, wanted: frozenset[ModelRef]) -> None:
        """A job gets all its models or an error that has its reason."""
        self.run(wanted)

    @rule(wanted=sets_of_models, broken=models)
    def start_job_with_broken_download(self, wanted: frozenset[ModelRef], broken: ModelRef) -> None:
        """One download breaks if it is needed."""
        self.bench.store.cut = {broken.key}
        self.run(wanted)
        self.bench.store.cut = set()

    @rule(wanted=sets_of_models)
    def start_job_without_storage(self, wanted: frozenset[ModelRef]) -> None:
        """Storage is down: only what is there can be used."""
        self.bench.store.down = True
        self.run(wanted)
        self.bench.store.down = False

    @rule(index=st.integers(0, 9))
    def end_job(self, index: int) -> None:
        """One of the running jobs ends."""
        if self.jobs:
            self.jobs.pop(index % len(self.jobs)).stack.close()

    @rule(model=models)
    def remove_by_hand(self, model: ModelRef) -> None:
        """Somebody removes a file that no job uses."""
        if not any(model in job.contents for job in self.jobs):
            self.bench.path(model).unlink(missing_ok=True)

    @rule()
    def die(self) -> None:
        """The process dies with its jobs running, and another one starts."""
        self.dead_jobs += self.jobs
        self.jobs = []
        self.cache = self.started()

    @rule(wanted=sets_of_models, moment=moments)
    def die_in_a_download(self, wanted: frozenset[ModelRef], moment: str) -> None:
        """The process dies in the middle of a download: the next one starts on the disk as it was then."""
        self.versions += 1
        snapshot = self.root / f"models-{self.versions}"

        def take_snapshot(_key: str) -> None:
            if not snapshot.exists():
                shutil.copytree(self.bench.model_dir, snapshot)

        setattr(self.bench.store, moment, take_snapshot)
        self.run(wanted)
        setattr(self.bench.store, moment, lambda _key: None)
        if snapshot.exists():
            self.bench.model_dir = snapshot
        self.die()

    def run(self, wanted: frozenset[ModelRef]) -> None:
        """Start a job."""
        stack = ExitStack()
        try:
            etags = stack.enter_context(self.cache.ensure([*wanted, IMAGE], deadline=1.0))
        except ComfyfnError as error:
            self.check_reason(error, wanted)
            return
        contents = {model: self.bench.path(model).read_bytes() for model in etags}
        self.jobs.append(RunningJob(stack, contents))
        assert contents == {IMAGE: IMAGE_CONTENT} | {model: self.content_of_etag[etags[model]] for model in wanted}

    def check_reason(self, error: ComfyfnError, wanted: frozenset[ModelRef]) -> None:
        """Each refusal has its reason."""
        total = sum(len(self.stored[model]) for model in wanted if model in self.stored)
        reasons = {
            CacheBusyError: bool(self.jobs),
            ModelMissingError: not wanted <= self.stored.keys(),
            ModelTooLargeError: total > CAPACITY_BYTES or not wanted <= self.stored.keys() or self.bench.store.down,
            StorageUnavailableError: bool(self.bench.store.cut) or self.bench.store.down,
        }
        assert reasons[type(error)]

    @invariant()
    def capacity_holds(self) -> None:
        """Files and reservations never exceed the capacity, on the books as well as on the disk."""
        on_disk = sum(map(len, self.bench.visible().values())) - len(IMAGE_CONTENT)
        assert on_disk <= self.cache.size_bytes <= CAPACITY_BYTES

    @invariant()
    def pinned_files_stay(self) -> None:
        """What a running job was given is there, unchanged."""
        for job in self.jobs:
            for model, content in job.contents.items():
                assert self.bench.path(model).read_bytes() == content

    @invariant()
    def files_are_what_they_say(self) -> None:
        """Every visible file has exactly the content of its ETag, and nothing unfinished lies around."""
        etags = {file.key: file.etag for file in self.cache.files()}
        for key, content in self.bench.visible().items():
            assert content == (IMAGE_CONTENT if key == IMAGE.key else self.content_of_etag[etags[key]])
        assert self.bench.leftovers() == []


TestModelCache = ModelCacheMachine.TestCase
TestModelCache.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None
)

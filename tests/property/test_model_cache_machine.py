"""The cache's promises, over a real directory and random histories.

Two caches share the directory. They know nothing of each other but what is on disk and locked, as if each were alone in
its process; `test_model_cache_processes.py` has real processes, and kills them.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from contextlib import ExitStack, suppress
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
from function.models.directory import PART_SUFFIX
from function.models.waiting import WaitingLine
from tests.support.models import Bench, books, ref

if TYPE_CHECKING:
    from function.models.cache import ModelCache
    from function.models.references import ModelRef

CAPACITY_BYTES = 30
IMAGE = ref("image")
IMAGE_CONTENT = b"from the image"

models = st.sampled_from([ref(name) for name in "abcde"])
sets_of_models = st.frozensets(models, min_size=1, max_size=3)
processes = st.integers(0, 1)
moments = st.sampled_from(["before_download", "after_download"])


def in_order(wanted: frozenset[ModelRef]) -> list[ModelRef]:
    """In an order that is the same in each run: that of a set depends on the process."""
    return sorted(wanted, key=lambda model: model.key)


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
        self.caches = self.started()
        self.stored: dict[ModelRef, bytes] = {}
        self.content_of_etag: dict[str, bytes] = {}
        self.jobs: list[RunningJob] = []
        self.dead_jobs: list[RunningJob] = []
        self.versions = 0

    def started(self) -> list[ModelCache]:
        """The caches of new processes, of which one asks storage for every job, the other once.

        A clock passes every deadline as soon as a job has to wait for room. Files come one by one, so that every
        history is the same in each run.
        """
        line = WaitingLine(self.bench.model_dir / ".comfyfn/queue")

        def clock() -> float:
            return 0.0 if line.empty else math.inf

        return [
            self.bench.cache(clock=clock, parallel_downloads=1, revalidate_seconds=seconds) for seconds in (0.0, 3600.0)
        ]

    def teardown(self) -> None:
        """End all jobs and remove the directory."""
        for job in self.jobs + self.dead_jobs:
            job.stack.close()
        for cache in self.caches:
            cache.stop()
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

    @rule(wanted=sets_of_models, process=processes)
    def start_job(self, wanted: frozenset[ModelRef], process: int) -> None:
        """A job gets all its models or an error that has its reason."""
        self.run(wanted, process)

    @rule(wanted=sets_of_models, process=processes)
    def prefetch(self, wanted: frozenset[ModelRef], process: int) -> None:
        """Somebody says what will be needed."""
        self.caches[process].prefetch(in_order(wanted))
        for thread in self.caches[process]._prefetcher._threads:
            thread.join()

    @rule(model=models, pinned=st.booleans(), process=processes)
    def pin(self, model: ModelRef, process: int, *, pinned: bool) -> None:
        """The operator keeps a file, or not any more."""
        with suppress(ModelMissingError):
            (self.caches[process].pin if pinned else self.caches[process].unpin)(model.key)

    @rule(model=models, process=processes)
    def evict(self, model: ModelRef, process: int) -> None:
        """The operator removes a file unless it is pinned."""
        kept = model in self.in_use() or model.key in self.kept()
        try:
            self.caches[process].evict(model.key)
        except CacheBusyError:
            assert kept
        except ModelMissingError:
            assert not self.bench.path(model).exists()
        else:
            assert not kept
            assert not self.bench.path(model).exists()

    @rule(wanted=sets_of_models, broken=models)
    def start_job_with_broken_download(self, wanted: frozenset[ModelRef], broken: ModelRef) -> None:
        """One download breaks if it is needed."""
        self.bench.store.cut = {broken.key}
        self.run(wanted, 0)
        self.bench.store.cut = set()

    @rule(wanted=sets_of_models)
    def start_job_without_storage(self, wanted: frozenset[ModelRef]) -> None:
        """Storage is down: only what is there can be used."""
        self.bench.store.down = True
        self.run(wanted, 0)
        self.bench.store.down = False

    @rule(index=st.integers(0, 9))
    def end_job(self, index: int) -> None:
        """One of the running jobs ends."""
        if self.jobs:
            self.jobs.pop(index % len(self.jobs)).stack.close()

    @rule(model=models)
    def remove_by_hand(self, model: ModelRef) -> None:
        """Somebody removes a file that no job uses."""
        if model not in self.in_use():
            self.bench.path(model).unlink(missing_ok=True)

    @rule()
    def die(self) -> None:
        """The processes die with their jobs running, and others start on the disk as it is then."""
        self.start_on(self.snapshot())

    @rule(wanted=sets_of_models, moment=moments)
    def die_in_a_download(self, wanted: frozenset[ModelRef], moment: str) -> None:
        """The processes die in the middle of a download."""
        taken: list[Path] = []
        setattr(self.bench.store, moment, lambda _key: taken or taken.append(self.snapshot()))
        self.run(wanted, 0)
        setattr(self.bench.store, moment, lambda _key: None)
        if taken:
            self.start_on(taken[0])

    def snapshot(self) -> Path:
        """A copy of the directory, on which nobody has a lock."""
        self.versions += 1
        copy = self.root / f"models-{self.versions}"
        shutil.copytree(self.bench.model_dir, copy)
        return copy

    def start_on(self, model_dir: Path) -> None:
        """Start the processes anew on a directory."""
        for cache in self.caches:
            cache.stop()
        self.dead_jobs += self.jobs
        self.jobs = []
        self.bench.model_dir = model_dir
        self.caches = self.started()

    def run(self, wanted: frozenset[ModelRef], process: int) -> None:
        """Start a job."""
        stack = ExitStack()
        try:
            etags = stack.enter_context(self.caches[process].ensure([*in_order(wanted), IMAGE], deadline=1.0))
        except ComfyfnError as error:
            self.check_reason(error, wanted)
            return
        contents = {model: self.bench.path(model).read_bytes() for model in etags}
        self.jobs.append(RunningJob(stack, contents))
        assert contents == {IMAGE: IMAGE_CONTENT} | {model: self.content_of_etag[etags[model]] for model in wanted}

    def in_use(self) -> set[ModelRef]:
        """Models of running jobs."""
        return {model for job in self.jobs for model in job.contents}

    def kept(self) -> set[str]:
        """Keys that the operator pinned."""
        return {file.key for file in self.caches[0].files() if file.pinned}

    def check_reason(self, error: ComfyfnError, wanted: frozenset[ModelRef]) -> None:
        """Each refusal has its reason."""
        total = sum(len(self.stored[model]) for model in wanted if model in self.stored)
        reasons = {
            CacheBusyError: bool(self.jobs or self.kept()),
            ModelMissingError: not wanted <= self.stored.keys(),
            ModelTooLargeError: total > CAPACITY_BYTES or not wanted <= self.stored.keys() or self.bench.store.down,
            StorageUnavailableError: bool(self.bench.store.cut) or self.bench.store.down,
        }
        assert reasons[type(error)]

    @invariant()
    def capacity_holds(self) -> None:
        """Files, parts and reservations never exceed the capacity, on the books as well as on the disk."""
        on_disk = sum(map(len, self.bench.visible().values())) - len(IMAGE_CONTENT)
        parts = sum(path.stat().st_size for path in self.bench.model_dir.rglob(f"*{PART_SUFFIX}"))
        assert on_disk + parts <= self.caches[0].size_bytes == self.caches[1].size_bytes <= CAPACITY_BYTES

    @invariant()
    def files_in_use_stay(self) -> None:
        """What a running job was given is there, unchanged."""
        for job in self.jobs:
            for model, content in job.contents.items():
                assert self.bench.path(model).read_bytes() == content

    @invariant()
    def files_are_what_they_say(self) -> None:
        """Every visible file has exactly the content of its ETag, and every part will be gone on with."""
        etags = {file.key: file.etag for file in self.caches[0].files()}
        for key, content in self.bench.visible().items():
            assert content == (IMAGE_CONTENT if key == IMAGE.key else self.content_of_etag[etags[key]])
        assert len(self.bench.parts()) == len(books(self.caches[0]).left)


TestModelCache = ModelCacheMachine.TestCase
TestModelCache.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None
)

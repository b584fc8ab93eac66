"""The line that every job takes, top to bottom."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from function.errors import JobFailedError
from function.inputs import staged_inputs
from function.job import Job, JobResult, failed_result
from function.jobs.attempt import run_attempt
from function.jobs.manifest import to_timestamp, utc_now
from function.models.references import localise_models, stamp_loaders
from function.outputs.files import OutputFolder
from function.outputs.inline import InlineOutputs
from function.outputs.stored import StoredOutputs
from function.validation.check import check_workflow
from function.workflow import confine_outputs, parse_workflow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.admission import Turn
    from function.engine.catalogue import NodeCatalogue
    from function.engine.engine import Engine
    from function.gpu import NvmlReader
    from function.jobs.records import JobRecords
    from function.models.background import BackgroundModels
    from function.models.cache import ModelCache
    from function.models.lookup import ModelLookup
    from function.models.starting import StartModels
    from function.storage.objects import ObjectStore
    from function.telemetry import OnProgress, Progress
    from function.transfer.client import FetcherProcess
    from function.validation.policy import Policy
    from function.workflow import Workflow


@dataclass(frozen=True, slots=True)
class Line:
    """What jobs run on; all of it belongs to the process."""

    records: JobRecords
    policy: Policy
    catalogue: NodeCatalogue
    lookup: ModelLookup
    models: ModelCache
    fetcher: FetcherProcess
    start_models: StartModels
    background: BackgroundModels
    uploads: ObjectStore
    results: ObjectStore
    engine: Engine
    gpus: NvmlReader
    input_dir: Path
    output_dir: Path

    def check(self, job: Job) -> None:
        """Refuse a workflow that can't run, whatever the engine is doing.

        It takes only what is known in this process, so a bad workflow is answered while another job runs for minutes.
        `run_job` looks again: the engine's nodes may be known only then.

        Raises:
            JobFailedError: Naming what is wrong.
        """
        _checked(job, self)

    def run_job(self, job: Job, turn: Turn, *, new: bool) -> JobResult:
        """Run one job that has the GPU; see the function of this name."""
        return run_job(job, self, turn, new=new)

    def prefetch(self, job: Job) -> None:
        """Begin to bring the models of a job that waits for the GPU.

        Raises:
            JobFailedError, StorageUnavailableError: As the job will itself when its turn comes.
        """
        self.models.prefetch(self.lookup.references(parse_workflow(job.workflow), job.preloads))

    def stop(self) -> None:
        """End what goes on beside jobs."""
        self.start_models.stop()
        self.background.stop()
        self.models.stop()
        self.fetcher.stop()
        self.engine.close()
        self.gpus.stop()


class Stopwatch:
    """Seconds from one stage's end to the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._last = clock()
        self.laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage now."""
        now = self._clock()
        self.laps[stage] = round(now - self._last, 3)
        self._last = now

    def timings(self) -> dict[str, float]:
        """Seconds per ended stage and in total."""
        return {**self.laps, "total": round(self._clock() - self._started, 3)}


def run_job(job: Job, line: Line, turn: Turn, *, new: bool) -> JobResult:
    """Run one job that has the GPU, from its claim to its result.

    A stored job that can't succeed ends in a failed result with a manifest; of a job that stores nothing the error
    is raised. A retryable error is raised always and leaves no manifest; the attempt is handed back.

    Args:
        job: The job.
        line: What it runs on.
        turn: What ends it, and who is told.
        new: Whether nobody is known to have claimed it.

    Raises:
        JobFailedError: The job stores nothing and can't succeed.
        RetryableError: The job may succeed later or on another pod.
    """
    watch = Stopwatch()
    if not job.stored:
        return _attempt(job, line, turn, 1, watch)

    def work(attempt: int, on_attempt: OnProgress) -> JobResult:
        try:
            return _attempt(job, line, replace(turn, on_progress=on_attempt), attempt, watch)
        except JobFailedError as error:
            finished_at = to_timestamp(utc_now())
            return failed_result(job, attempt, error, finished_at=finished_at, timings=watch.timings())

    return run_attempt(line.records, job, work, new=new, cancellation=turn.cancellation, on_progress=turn.on_progress)


def _checked(job: Job, line: Line) -> Workflow:
    workflow = parse_workflow(job.workflow)
    check_workflow(workflow, line.policy, line.catalogue.definitions)
    return workflow


def _attempt(job: Job, line: Line, turn: Turn, attempt: int, watch: Stopwatch) -> JobResult:
    def on_preparation(progress: Progress) -> None:
        turn.cancellation.check()
        turn.on_progress(progress)

    workflow = _checked(job, line)
    references = line.lookup.references(workflow, job.preloads)
    folder = OutputFolder(line.output_dir, job.job_id, view=line.engine.view)
    with line.models.ensure(references, deadline=turn.deadline, on_progress=on_preparation) as etags:
        watch.lap("models")
        with (
            staged_inputs(
                stamp_loaders(localise_models(workflow, references), etags),
                job_id=job.job_id,
                input_dir=line.input_dir,
                uploads=line.uploads,
                results=line.results,
                on_progress=on_preparation,
            ) as staged,
            folder.removed_at_the_end(),
            _collector(job, line, folder, attempt, turn.on_progress) as collector,
        ):
            watch.lap("inputs")
            run = line.engine.run(
                confine_outputs(staged, job.job_id),
                deadline=turn.deadline,
                cancellation=turn.cancellation,
                on_progress=turn.on_progress,
                on_outputs=collector.begin,
            )
            watch.lap("executing")
            if folder.has(run.files):
                turn.on_executed()
            outputs = collector.finish(run.files)
            watch.lap("storing")
    return JobResult(
        job_id=job.job_id,
        status="completed",
        attempt=attempt,
        label=job.label,
        finished_at=to_timestamp(utc_now()),
        outputs=outputs,
        texts=dict(run.texts),
        timings=watch.timings(),
    )


def _collector(
    job: Job, line: Line, folder: OutputFolder, attempt: int, on_progress: OnProgress
) -> StoredOutputs | InlineOutputs:
    if job.stored:
        return StoredOutputs(line.results, folder, attempt=attempt, on_progress=on_progress)
    return InlineOutputs(folder)

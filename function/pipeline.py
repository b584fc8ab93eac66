"""The line that every job takes, top to bottom."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from function.engine.catalogue import NodeCatalogue, open_catalogue
from function.engine.engine import Engine
from function.errors import JobFailedError
from function.gpu import NvmlReader
from function.inputs import staged_inputs
from function.job import Job, JobResult, failed_result
from function.jobs.attempt import run_attempt
from function.jobs.dispatch import Dispatcher
from function.jobs.manifest import to_timestamp, utc_now
from function.jobs.records import JobRecords
from function.jobs.service import Jobs
from function.jobs.sweep import Sweep
from function.models.background import BackgroundModels
from function.models.opening import open_models
from function.models.references import localise_models, stamp_loaders
from function.outputs.files import OutputFolder
from function.outputs.inline import InlineOutputs
from function.outputs.stored import StoredOutputs
from function.storage import open_store
from function.validation.check import check_workflow
from function.validation.policy import Policy
from function.workflow import confine_outputs, parse_workflow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.cancellation import Cancellation
    from function.config import Settings
    from function.engine.supervisor import Supervisor
    from function.models.cache import ModelCache
    from function.models.lookup import ModelLookup
    from function.storage.objects import ObjectStore
    from function.telemetry import Metrics, OnProgress, Progress
    from function.transfer.client import FetcherProcess


@dataclass(frozen=True, slots=True)
class Line:
    """What jobs run on; all of it belongs to the process."""

    records: JobRecords
    policy: Policy
    catalogue: NodeCatalogue
    lookup: ModelLookup
    models: ModelCache
    fetcher: FetcherProcess
    background: BackgroundModels
    uploads: ObjectStore
    results: ObjectStore
    engine: Engine
    gpus: NvmlReader
    input_dir: Path
    output_dir: Path

    def run_job(
        self, job: Job, *, new: bool, deadline: float, cancellation: Cancellation, on_progress: OnProgress
    ) -> JobResult:
        """Run one job that has the GPU; see the function of this name."""
        return run_job(job, self, new=new, deadline=deadline, cancellation=cancellation, on_progress=on_progress)

    def prefetch(self, job: Job) -> None:
        """Begin to bring the models of a job that waits for the GPU.

        Raises:
            JobFailedError, StorageUnavailableError: As the job will itself when its turn comes.
        """
        self.models.prefetch(self.lookup.references(parse_workflow(job.workflow), job.preloads))

    def stop(self) -> None:
        """End what goes on beside jobs."""
        self.background.stop()
        self.models.stop()
        self.fetcher.stop()
        self.gpus.stop()


def build_jobs(settings: Settings) -> Jobs:
    """Build what every process knows of jobs, whether it runs them or not; nothing is started or asked."""
    results = open_store(settings.results_url)
    records = JobRecords(results, lease_seconds=settings.lease_seconds)
    if not settings.dispatch_url:
        return Jobs(records, results, dispatcher=None, sweep=None, on_ended=records.close)
    dispatcher = Dispatcher(
        settings.dispatch_url,
        records,
        answer_seconds=settings.deadline_seconds + settings.lease_seconds,
        on_ended=records.close,
    )
    retention = timedelta(days=settings.retention_days) if settings.retention_days else None
    sweep = Sweep(records, dispatcher, on_ended=records.close, retention=retention)
    return Jobs(records, results, dispatcher=dispatcher, sweep=sweep, on_ended=records.close)


def build_line(settings: Settings, supervisor: Supervisor, jobs: Jobs, *, metrics: Metrics) -> Line:
    """Build what jobs run on; nothing outside the process is touched but the model directory.

    Raises:
        OSError: The model directory can't be used.
    """
    models = open_models(settings, metrics=metrics)
    return Line(
        records=jobs.records,
        policy=_policy(settings),
        catalogue=_catalogue(settings, supervisor),
        lookup=models.lookup,
        models=models.cache,
        fetcher=models.fetcher,
        background=BackgroundModels(models.lookup, models.cache, deadline_seconds=settings.deadline_seconds),
        uploads=open_store(settings.uploads_url),
        results=jobs.results,
        engine=Engine(
            supervisor,
            metrics=metrics,
            memory_limit_bytes=settings.engine_memory_limit_bytes,
            while_running=models.fetcher.making_way,
        ),
        gpus=NvmlReader(visible=settings.visible_gpus),
        input_dir=settings.input_dir,
        output_dir=settings.output_dir,
    )


def _policy(settings: Settings) -> Policy:
    return Policy(
        allowed_nodes=settings.allowed_nodes,
        denied_nodes=settings.denied_nodes,
        max_pixels=settings.max_pixels,
        max_batch=settings.max_batch,
        max_frames=settings.max_frames,
    )


def _catalogue(settings: Settings, supervisor: Supervisor) -> NodeCatalogue:
    catalogue = open_catalogue(settings)
    catalogue.follow(supervisor)
    return catalogue


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


def run_job(
    job: Job, line: Line, *, new: bool, deadline: float, cancellation: Cancellation, on_progress: OnProgress
) -> JobResult:
    """Run one job that has the GPU, from its claim to its result.

    A stored job that can't succeed ends in a failed result with a manifest; of a job that stores nothing the error
    is raised. A retryable error is raised always and leaves no manifest; the attempt is handed back.

    Args:
        job: The job.
        line: What it runs on.
        new: Whether nobody is known to have claimed it.
        deadline: Monotonic seconds by which the engine must be done.
        cancellation: Ends the job with its reason until the engine is done.
        on_progress: Observer of its stages.

    Raises:
        JobFailedError: The job stores nothing and can't succeed.
        RetryableError: The job may succeed later or on another pod.
    """
    watch = Stopwatch()
    if not job.stored:
        return _attempt(job, line, 1, watch, deadline=deadline, cancellation=cancellation, on_progress=on_progress)

    def work(attempt: int, on_attempt: OnProgress) -> JobResult:
        try:
            return _attempt(
                job, line, attempt, watch, deadline=deadline, cancellation=cancellation, on_progress=on_attempt
            )
        except JobFailedError as error:
            finished_at = to_timestamp(utc_now())
            return failed_result(job, attempt, error, finished_at=finished_at, timings=watch.timings())

    return run_attempt(line.records, job, work, new=new, cancellation=cancellation, on_progress=on_progress)


def _attempt(
    job: Job,
    line: Line,
    attempt: int,
    watch: Stopwatch,
    *,
    deadline: float,
    cancellation: Cancellation,
    on_progress: OnProgress,
) -> JobResult:
    def on_preparation(progress: Progress) -> None:
        cancellation.check()
        on_progress(progress)

    workflow = parse_workflow(job.workflow)
    check_workflow(workflow, line.policy, line.catalogue.definitions)
    references = line.lookup.references(workflow, job.preloads)
    folder = OutputFolder(line.output_dir, job.job_id)
    with line.models.ensure(references, deadline=deadline, on_progress=on_preparation) as etags:
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
            _collector(job, line, folder, attempt, on_progress) as collector,
        ):
            watch.lap("inputs")
            run = line.engine.run(
                confine_outputs(staged, job.job_id),
                deadline=deadline,
                cancellation=cancellation,
                on_progress=on_progress,
                on_outputs=collector.begin,
            )
            watch.lap("executing")
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

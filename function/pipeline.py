"""The line that every job takes, top to bottom."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, JobFailedError
from function.inputs.media import without_lists
from function.inputs.staging import staged_inputs
from function.job import Job, JobResult, failed_result
from function.jobs.attempt import run_attempt
from function.jobs.manifest import to_timestamp, utc_now
from function.models.references import localise_models, stamp_loaders
from function.outputs.files import OutputFolder, converter_of
from function.outputs.inline import InlineOutputs
from function.outputs.stored import StoredOutputs
from function.validation.check import check_workflow
from function.workflow import confine_outputs, parse_workflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from function.admission import Turn
    from function.engine.catalogue import NodeCatalogue
    from function.engine.engine import Engine
    from function.engine.results import EngineFile
    from function.gpu import NvmlReader
    from function.inputs.sources import InputSources
    from function.jobs.records import JobRecords
    from function.models.background import BackgroundModels
    from function.models.cache import ModelCache
    from function.models.lookup import ModelLookup
    from function.models.references import ModelRef
    from function.models.starting import StartModels
    from function.outputs.uploading import Uploader
    from function.storage.objects import ObjectStore
    from function.telemetry import OnProgress, Progress
    from function.transfer.client import FetcherProcess
    from function.validation.definitions import Definitions
    from function.validation.policy import Policy
    from function.workflow import Workflow


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """A job whose workflow may run, as far as was known when it was looked at.

    Attributes:
        job: The job.
        workflow: Its graph.
        definitions: What was known of the engine's nodes; None: nothing yet.
    """

    job: Job
    workflow: Workflow
    definitions: Definitions | None


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job whose input files are there.

    Attributes:
        checked: The job.
        workflow: Its graph as the engine can run it once its models are there.
        models: Those that it names.
        seconds: What preparing it took.
    """

    checked: CheckedJob
    workflow: Workflow
    models: tuple[ModelRef, ...]
    seconds: float


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
    inputs: InputSources
    results: ObjectStore
    uploader: Uploader
    engine: Engine
    gpus: NvmlReader
    output_dir: Path

    def check(self, job: Job) -> CheckedJob:
        """Refuse a workflow that can't run, whatever the engine is doing.

        It takes only what is known in this process, so a bad workflow is answered while another job runs for minutes;
        but an engine with custom nodes is asked for a class that it did not describe.
        `run_job` looks again if the engine's nodes are known only then.

        Raises:
            JobFailedError: Naming what is wrong.
        """
        workflow, definitions = parse_workflow(job.workflow), self.catalogue.definitions
        undescribed = self.catalogue.undescribed(workflow)
        check_workflow(without_lists(workflow), self.policy, definitions, undescribed=undescribed)
        return CheckedJob(job, workflow, definitions)

    @contextmanager
    def prepared(
        self, job: Job, *, prefetching: bool, deadline: float, on_progress: OnProgress
    ) -> Iterator[PreparedJob]:
        """Do what can be done before it is a job's turn on the GPU: bring its input files, and see that it may run.

        The files are there until the context closes.

        Args:
            job: The job.
            prefetching: Whether to begin to bring its models too, because others are before it.
            deadline: Monotonic seconds.
            on_progress: Told in this thread; what it raises ends the preparation.

        Raises:
            JobFailedError: Naming what is wrong, or what can't be had.
            StorageUnavailableError: One of our stores does not answer.
        """
        checked = self.check(job)
        started = time.monotonic()
        models = self.lookup.references(checked.workflow, job.preloads, credentials=job.credentials)
        if prefetching:
            with suppress(ComfyfnError):  # the job says the same when its turn comes
                self.models.prefetch(models)
        with staged_inputs(
            localise_models(checked.workflow, models),
            job,
            self.inputs,
            deadline=deadline,
            on_progress=on_progress,
            definitions=self.catalogue.definitions,
        ) as workflow:
            yield PreparedJob(checked, workflow, models, time.monotonic() - started)

    def run_job(self, prepared: PreparedJob, turn: Turn, *, new: bool) -> JobResult:
        """Run one job that has the GPU; see the function of this name."""
        return run_job(prepared, self, turn, new=new)

    def stop(self) -> None:
        """End what goes on beside jobs."""
        self.start_models.stop()
        self.background.stop()
        self.models.stop()
        self.fetcher.stop()
        self.engine.close()
        self.gpus.stop()


class Stopwatch:
    """Seconds from one stage's end to the next.

    Args:
        laps: Stages that ended before.
    """

    def __init__(self, laps: Mapping[str, float]) -> None:
        self._last = time.monotonic()
        self._started = self._last - sum(laps.values())
        self.laps = {stage: round(seconds, 3) for stage, seconds in laps.items()}

    def lap(self, stage: str) -> None:
        """End a stage now."""
        now = time.monotonic()
        self.laps[stage] = round(now - self._last, 3)
        self._last = now

    def timings(self) -> dict[str, float]:
        """Seconds per ended stage and in total."""
        return {**self.laps, "total": round(time.monotonic() - self._started, 3)}


def run_job(prepared: PreparedJob, line: Line, turn: Turn, *, new: bool) -> JobResult:
    """Run one job that has the GPU, from its claim to its result.

    A stored job that can't succeed ends in a failed result with a manifest; of a job that stores nothing the error
    is raised. A retryable error is raised always and leaves no manifest; the attempt is handed back.

    Args:
        prepared: The job, from `Line.prepared`.
        line: What it runs on.
        turn: What ends it, and who is told.
        new: Whether nobody is known to have claimed it.

    Raises:
        JobFailedError: The job stores nothing and can't succeed.
        RetryableError: The job may succeed later or on another pod.
    """
    job, watch = prepared.checked.job, Stopwatch({"inputs": prepared.seconds})
    line.engine.refuse_when_failing()  # before the claim: a job has a hundred, and is delivered again at once
    if not job.stored:
        return _attempt(prepared, line, turn, 1, watch)

    def work(attempt: int, on_attempt: OnProgress) -> JobResult:
        try:
            return _attempt(prepared, line, replace(turn, on_progress=on_attempt), attempt, watch)
        except JobFailedError as error:
            finished_at = to_timestamp(utc_now())
            return failed_result(job, attempt, error, finished_at=finished_at, timings=watch.timings())

    return run_attempt(line.records, job, work, new=new, cancellation=turn.cancellation, on_progress=turn.on_progress)


def _attempt(prepared: PreparedJob, line: Line, turn: Turn, attempt: int, watch: Stopwatch) -> JobResult:
    def on_models(progress: Progress) -> None:
        turn.cancellation.check()
        turn.on_progress(progress)

    job = prepared.checked.job
    if line.catalogue.definitions is not prepared.checked.definitions:
        line.check(job)
    converter = converter_of(line.output_dir, job.job_id, job.convert_output)
    folder = OutputFolder(line.output_dir, job.job_id, view=line.engine.view, converter=converter)
    with line.models.ensure(prepared.models, deadline=turn.deadline, on_progress=on_models) as etags:
        watch.lap("models")
        with (
            folder.removed_at_the_end() as reported,
            _collector(job, line, folder, attempt, turn.on_progress) as collector,
        ):

            def on_outputs(files: Sequence[EngineFile]) -> None:
                reported.extend(files)
                collector.begin(files)

            run = line.engine.run(
                confine_outputs(stamp_loaders(prepared.workflow, etags), job.job_id),
                deadline=turn.deadline,
                cancellation=turn.cancellation,
                on_progress=turn.on_progress,
                on_outputs=on_outputs,
            )
            reported.extend(run.files)
            watch.lap("executing")
            if folder.has(run.files):
                turn.on_executed()
            outputs = collector.finish(run.files)
            watch.lap("storing")
            if job.upload:
                line.uploader.send(job.upload, folder, run.files, check=turn.cancellation.check)
                watch.lap("uploading")
    return JobResult(
        job_id=job.job_id,
        status="completed",
        attempt=attempt,
        label=job.label,
        finished_at=to_timestamp(utc_now()),
        outputs=outputs,
        texts=dict(run.texts),
        timings=watch.timings(),
        execution=run.execution,
    )


def _collector(
    job: Job, line: Line, folder: OutputFolder, attempt: int, on_progress: OnProgress
) -> StoredOutputs | InlineOutputs:
    if job.stored:
        return StoredOutputs(line.results, folder, attempt=attempt, on_progress=on_progress)
    return InlineOutputs(folder, keep=job.upload is None)

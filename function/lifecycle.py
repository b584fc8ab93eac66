"""The function as a process: it owns every resource, from start to stop."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from function.admission import Admission
from function.engine.engine import Engine
from function.errors import (
    ComfyfnError,
    DrainingError,
    InterruptedJobError,
    JobRunningError,
    SettingsError,
    StorageUnavailableError,
)
from function.gpu import NvmlReader, update_metrics
from function.jobs import JobRecords
from function.logs import job_context
from function.models.cache import ModelCache
from function.pipeline import Line, run_job
from function.storage import open_store, probe_create
from function.telemetry import Metrics, Progress

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from function.config import Settings
    from function.engine.supervisor import Supervisor
    from function.job import Job, JobResult

_log = logging.getLogger("comfyfn")

_INTERRUPT_SECONDS = 0.2  # a job that is not in the engine yet can only be interrupted once it is


class Function:
    """One function process: admits jobs, gives them the GPU in turn, runs them down the line.

    Building it touches nothing outside the process but the model directory; `start` begins to check the storage.

    Args:
        settings: All settings.
        supervisor: The engine's supervisor, which may have been started already so that the engine boots meanwhile.
        metrics: Where everything is counted.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor, *, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.admission = Admission(settings.admit_limit)
        self.results = open_store(settings.results_url)
        self.records = JobRecords(self.results)
        self.models = ModelCache(
            settings.model_dir,
            open_store(settings.models_url),
            capacity_bytes=settings.cache_capacity_bytes,
            metrics=metrics,
        )
        self._engine = Engine(supervisor, metrics=metrics)
        self._line = Line(
            records=self.records,
            models=self.models,
            uploads=open_store(settings.uploads_url),
            results=self.results,
            engine=self._engine,
            input_dir=settings.input_dir,
            output_dir=settings.output_dir,
        )
        self.gpus = NvmlReader(visible=settings.visible_gpus)
        self._progress: dict[str, Progress] = {}
        self._progress_lock = threading.Lock()
        self._refusal: ComfyfnError | None = None

    def start(self) -> None:
        """Start the engine unless it runs already, and check in the background that the results store can be used."""
        self._engine.start()
        if self.settings.results_url.startswith("file:") and self.settings.knative_service:
            _log.warning("RESULTS_URL is %s: results are lost with this pod", self.settings.results_url)
        threading.Thread(target=self._check_storage, name="storage-check", daemon=True).start()

    def _check_storage(self) -> None:
        try:
            probe_create(self.results)
        except StorageUnavailableError as error:
            _log.warning("results store: %s", error.message)
        except SettingsError as error:
            self._refusal = error
            _log.error("results store: %s", error.message)

    def stop(self) -> None:
        """Stop the engine and let the GPU go."""
        self._engine.stop()
        self.gpus.stop()

    @property
    def alive(self) -> bool:
        """Whether the process can do its work: the settings hold and the engine runs, even if it still boots."""
        return self._refusal is None and self._engine.alive

    @property
    def ready(self) -> bool:
        """Whether the engine answers and the pod takes jobs."""
        full = 0 < self.settings.max_queue_depth <= self.admission.depth
        return self.alive and self._engine.ready and not self.admission.draining and not full

    @property
    def problem(self) -> str:
        """Why the function is not alive or not ready, in one line; "" when it is."""
        if self._refusal is not None:
            return self._refusal.message
        if self.admission.draining:
            return "shutting down"
        return "" if self._engine.ready else self._engine.last_error or "the engine is starting"

    def admitted(self) -> AbstractContextManager[None]:
        """Count a job from before its body is read until it is answered; see `Admission.admitted`."""
        return self.admission.admitted()

    def handle(self, job: Job) -> JobResult:
        """Run one admitted job; see `run_job` for what comes of it.

        Raises:
            JobRunningError: This process is running the same job.
            DrainingError: The pod is shutting down before the job started, or it could not end in time.
        """
        if self._refusal is not None and job.stored:
            raise StorageUnavailableError(self._refusal.message)
        with self._progress_lock:
            if job.job_id in self._progress:
                raise JobRunningError(f"job {job.job_id} is running in this pod")
            self._progress[job.job_id] = Progress("queued", 0.0)
        try:
            with job_context(job.job_id):
                return self._counted(job)
        finally:
            del self._progress[job.job_id]

    def _counted(self, job: Job) -> JobResult:
        started = time.monotonic()
        outcome = "internal"
        try:
            result = self._run(job, started)
            outcome = str(result.error["code"]) if result.error else "completed"
        except ComfyfnError as error:
            outcome = error.code
            raise
        else:
            return result
        finally:
            seconds = time.monotonic() - started
            self.metrics.jobs.labels(outcome=outcome).inc()
            self.metrics.job_seconds.observe(seconds)
            _log.info("job ended", extra={"outcome": outcome, "seconds": round(seconds, 3)})

    def _run(self, job: Job, started: float) -> JobResult:
        limit = self.settings.deadline_seconds
        deadline = started + min(job.deadline_seconds or limit, limit)

        def on_progress(progress: Progress) -> None:
            self._progress[job.job_id] = progress

        def on_position(before: int) -> None:
            on_progress(Progress("queued", 0.0, f"{before} before it"))

        with self.admission.turn(deadline=deadline, on_position=on_position):
            try:
                return run_job(job, self._line, deadline=deadline, on_progress=on_progress)
            except InterruptedJobError as error:
                if self.admission.draining:
                    raise DrainingError("this pod shut down before the job could end") from error
                raise

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is that waits or runs in this process."""
        return self._progress.get(job_id)

    def drain(self) -> None:
        """Shut down in order: refuse jobs, send waiting ones away, give the running one DRAIN_SECONDS, then stop it."""
        self.admission.drain()
        if self.admission.wait_until_idle(self.settings.drain_seconds):
            return
        _log.warning("the running job did not end within DRAIN_SECONDS=%d", self.settings.drain_seconds)
        while not self.admission.wait_until_idle(_INTERRUPT_SECONDS):
            self._engine.interrupt()

    def metrics_text(self) -> bytes:
        """All metrics in Prometheus' text format, with the gauges read now."""
        update_metrics(self.metrics, self.gpus.read())
        self.metrics.jobs_admitted.set(self.admission.depth)
        return generate_latest(self.metrics.registry)

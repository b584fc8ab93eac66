"""The function as a process: it owns every resource, from start to stop.

What a job needs (storage, cache, the engine's client) is imported and built in a thread that `start` begins, so that
probes are answered and the engine boots meanwhile; a job that comes earlier waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from function.admission import Admission
from function.cancellation import Cancellation
from function.clients import ClientWatch
from function.errors import (
    ClientGoneError,
    ComfyfnError,
    DrainingError,
    JobRunningError,
    SettingsError,
    StorageUnavailableError,
)
from function.logs import job_context
from function.telemetry import Metrics, Progress
from function.warmup import WarmUp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from socket import socket

    from function.config import Settings
    from function.engine.supervisor import Supervisor
    from function.job import Job, JobResult
    from function.pipeline import Line

_log = logging.getLogger("comfyfn")

_BUILD_SECONDS = 60.0
_INTERRUPT_SECONDS = 0.2  # the job that has the GPU next may not have begun yet


class Function:
    """One function process: admits jobs, gives them the GPU in turn, runs them down the line.

    Args:
        settings: All settings.
        supervisor: The engine's supervisor, which may have been started already.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self.settings = settings
        self.admission = Admission(settings.admit_limit)
        self.metrics = Metrics()
        self._supervisor = supervisor
        self._line: Future[Line] = Future()
        self._progress: dict[str, Progress] = {}
        self._progress_lock = threading.Lock()
        self._clients = ClientWatch()
        self._running = Cancellation()
        self._warm_up = WarmUp(self._run_warm_up) if settings.warmup_workflow else None
        self._refusal = ""

    def start(self) -> None:
        """Start the engine unless it runs already, and begin to build what jobs need."""
        self._supervisor.start()
        self._clients.start()
        if self._warm_up:
            self._warm_up.start(self._supervisor)
        if self.settings.results_url.startswith("file:") and self.settings.knative_service:
            _log.warning("RESULTS_URL is %s: results are lost with this pod", self.settings.results_url)
        threading.Thread(target=self._build_line, name="build-line", daemon=True).start()

    def _build_line(self) -> None:
        from function.pipeline import build_line  # noqa: PLC0415  (imports most of the function; see above)
        from function.storage import probe_create  # noqa: PLC0415

        try:
            self._line.set_result(build_line(self.settings, self._supervisor, metrics=self.metrics))
            self._begin_to_bring()
            probe_create(self.line.results)
        except StorageUnavailableError as error:
            _log.warning("results store: %s", error.message)
        except (SettingsError, OSError) as error:
            self._refusal = str(error)
            _log.error("no job can be taken: %s", error)
        finally:
            if not self._line.done():
                self._refusal = self._refusal or "the function could not be built; its log says why"
                self._line.set_exception(StorageUnavailableError(self._refusal))

    def _begin_to_bring(self) -> None:
        """Begin with what is wanted from the start, and have the transfer process ready for what the jobs want.

        A pod that starts from zero has a job waiting whose models are not there yet: importing boto3 would come before
        their first byte, and comes while the engine boots instead.
        """
        if not self.line.models.read_only:
            self.line.fetcher.start()
        self.line.background.preload(self.settings.preload_models)

    @property
    def line(self) -> Line:
        """What jobs run on; waits until it is built.

        Raises:
            StorageUnavailableError: It can't be built, or the results store has no create-if-absent.
        """
        if self._refusal:
            raise StorageUnavailableError(self._refusal)
        return self._line.result(_BUILD_SECONDS)

    def stop(self) -> None:
        """Stop the engine and let the GPU go."""
        if self._warm_up:
            self._warm_up.stop()
        if self._built:
            self._line.result().stop()  # before the engine, to which it has connections
        self._supervisor.stop()
        self._clients.stop()

    @property
    def alive(self) -> bool:
        """Whether the process can do its work: nothing it needs is refused and the engine runs, even if it boots."""
        return not self._refusal and self._supervisor.alive

    @property
    def ready(self) -> bool:
        """Whether the engine answers, is warm, and the pod takes jobs."""
        full = 0 < self.settings.max_queue_depth <= self.admission.depth
        return self.alive and not self.problem and not full

    @property
    def problem(self) -> str:
        """Why the function is not alive or not ready, in one line; "" when it is."""
        if self._refusal:
            return self._refusal
        if self.admission.draining:
            return "shutting down"
        if lost := self._lost_gpus():
            return lost
        if not self._supervisor.ready:
            return self._supervisor.last_error or "the engine is starting"
        return self._warm_up.problem if self._warm_up else ""

    @property
    def _built(self) -> bool:
        return self._line.done() and not self._line.exception()

    def _lost_gpus(self) -> str:
        return self._line.result().gpus.lost() if self._built else ""

    def admitted(self) -> AbstractContextManager[None]:
        """Count a job from before its body is read until it is answered; see `Admission.admitted`."""
        return self.admission.admitted()

    def handle(self, job: Job, *, connection: socket | None = None) -> JobResult:
        """Run one admitted job; see `run_job` for what comes of it.

        A job whose client goes away while it waits for the GPU leaves the queue. One that runs is interrupted unless
        it is stored: that one goes on, so that it can be answered from its manifest when it is delivered again.

        Args:
            job: The job.
            connection: Where its client waits for the answer; None if that can't be watched.

        Raises:
            ClientGoneError: The client went away.
            JobRunningError: This process is running the same job.
            DrainingError: The pod is shutting down before the job started, or it could not end in time.
        """
        with self._tracked(job):
            return self._counted(job, connection)

    @contextmanager
    def _tracked(self, job: Job) -> Iterator[None]:
        with self._progress_lock:
            if job.job_id in self._progress:
                raise JobRunningError(f"job {job.job_id} is running in this pod")
            self._progress[job.job_id] = Progress("queued", 0.0)
        try:
            with job_context(job.job_id):
                yield
        finally:
            del self._progress[job.job_id]

    def _counted(self, job: Job, connection: socket | None) -> JobResult:
        started = time.monotonic()
        outcome = "internal"
        try:
            result = self._watched(job, started, connection)
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

    def _watched(self, job: Job, started: float, connection: socket | None) -> JobResult:
        client = Cancellation()

        def on_gone() -> None:
            client.cancel(ClientGoneError("the client closed the connection before the job had ended"))
            self.admission.look_again()

        with self._clients.watching(connection, on_gone):
            return self._run(job, started, client)

    def _run(self, job: Job, started: float, client: Cancellation) -> JobResult:
        limit = self.settings.deadline_seconds
        deadline = started + min(job.deadline_seconds or limit, limit)

        def on_progress(progress: Progress) -> None:
            self._progress[job.job_id] = progress

        def on_position(before: int) -> None:
            on_progress(Progress("queued", 0.0, f"{before} before it"))

        line = self.line
        if self.admission.depth > 1:
            with suppress(ComfyfnError):  # the job says the same when its turn comes
                line.prefetch(job)
        gpu = self.admission.turn(
            deadline=deadline, on_position=on_position, cancellation=client, interactive=job.interactive
        )
        with ExitStack() as holding:
            holding.enter_context(gpu)
            holding.callback(line.engine.recycle)
            self._running = cancellation = Cancellation() if job.stored else client
            return line.run_job(
                job, deadline=deadline, cancellation=cancellation, on_progress=on_progress, on_executed=holding.close
            )

    def _run_warm_up(self) -> None:
        from function.job import Job, random_job_id  # noqa: PLC0415  (imports pydantic; see above)

        job = Job(random_job_id(), self.settings.warmup_workflow or {}, label="warm-up", stored=False, interactive=True)
        with self._tracked(job):
            self._run(job, time.monotonic(), Cancellation())

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is that waits or runs in this process."""
        return self._progress.get(job_id)

    def drain(self) -> None:
        """Shut down in order: refuse jobs, send waiting ones away, give the running one DRAIN_SECONDS, then stop it."""
        self.admission.drain()
        self._line.add_done_callback(_stop_downloads)
        if self.admission.wait_until_idle(self.settings.drain_seconds):
            return
        _log.warning("the running job did not end within DRAIN_SECONDS=%d", self.settings.drain_seconds)
        while not self.admission.wait_until_idle(_INTERRUPT_SECONDS):
            self._running.cancel(DrainingError("this pod shut down before the job could end"))


def _stop_downloads(line: Future[Line]) -> None:
    """What no job waits for is of no use to a pod that ends."""
    if not line.exception():
        line.result().background.stop()

"""The function as a process: it owns every resource, from start to stop.

What a job needs (storage, cache, the engine's client) is imported and built in a thread that `start` begins, so that
probes are answered and the engine boots meanwhile; a job that comes earlier waits for it.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING

from function.admission import Admission
from function.clients import ClientWatch
from function.errors import DrainingError, NotHereError, SettingsError, StorageUnavailableError
from function.handling import JobHandler
from function.start_manifest import not_in_image
from function.telemetry import Metrics
from function.warmup import WarmUp, fetch_workflow

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from socket import socket
    from typing import TypeVar

    from function.config import Settings
    from function.engine.supervisor import Supervisor
    from function.errors import ComfyfnError
    from function.job import Job, JobResult
    from function.jobs.service import Jobs
    from function.pipeline import Line
    from function.storage.objects import ObjectStore
    from function.telemetry import Progress
    from function.templates.store import TemplateStore
    from function.uploads import UploadRules
    from function.workflow import Workflow

    _Part = TypeVar("_Part")

_log = logging.getLogger("comfyfn")

_BUILD_SECONDS = 60.0
_INTERRUPT_SECONDS = 0.2  # the job that has the GPU next may not have begun yet


class Function:
    """One function process: admits jobs, gives them the GPU in turn, runs them down the line.

    Args:
        settings: All settings.
        supervisor: The engine's supervisor, which may have been started already; None: a service without an engine.
        build_seconds: For how long a job waits for what it needs to be built.
    """

    def __init__(
        self, settings: Settings, supervisor: Supervisor | None, *, build_seconds: float = _BUILD_SECONDS
    ) -> None:
        self.settings = settings
        self._build_seconds = build_seconds
        self.metrics = Metrics()
        self.admission = Admission(settings.admit_limit, on_full=self.metrics.jobs_refused.inc)
        self._supervisor = supervisor
        self._jobs: Future[Jobs] = Future()
        self._line: Future[Line] = Future()
        self._clients = ClientWatch()
        self._handler = JobHandler(
            jobs=lambda: self.jobs,
            line=lambda: self.line,
            admission=self.admission,
            clients=self._clients,
            metrics=self.metrics,
            deadline_seconds=settings.deadline_seconds,
        )
        self._warm_up = WarmUp(self._run_warm_up) if settings.warmup_workflow or settings.warmup_url else None
        self._refusal = ""

    def start(self) -> None:
        """Start the engine unless it runs already, and begin to build what jobs need."""
        if self._supervisor:
            self._supervisor.start()
            if self._warm_up:
                self._warm_up.start(self._supervisor)
        self._clients.start()
        if self.settings.results_url.startswith("file:") and self.settings.knative_service:
            _log.warning("RESULTS_URL is %s: results are lost with this pod", self.settings.results_url)
        self._name_what_is_not_installed()
        threading.Thread(target=self._build, name="build", daemon=True).start()

    def _name_what_is_not_installed(self) -> None:
        missing = not_in_image(self.settings.manifest) if self._supervisor else []
        if missing:
            _log.warning(
                "not installed, because it belongs into the image (docker build --build-arg MANIFEST=...): %s",
                ", ".join(missing),
            )

    def _build(self) -> None:
        from function.building import build_jobs, build_line  # noqa: PLC0415  (imports most of the function; see above)
        from function.storage import probe_create  # noqa: PLC0415

        try:
            self._jobs.set_result(build_jobs(self.settings, metrics=self.metrics))
            if self._supervisor:
                self._line.set_result(build_line(self.settings, self._supervisor, self.jobs, metrics=self.metrics))
                self._begin_to_bring()
            self.jobs.start(sweeping=self._supervisor is None or not self.settings.knative_service)
            probe_create(self.jobs.results)
        except StorageUnavailableError as error:
            _log.warning("results store: %s", error.message)
        except (SettingsError, OSError) as error:
            self._refusal = str(error)
            _log.error("no job can be taken: %s", error)
        finally:
            for part in (self._jobs, self._line):
                if not part.done():
                    part.set_exception(self._unbuilt())

    def _unbuilt(self) -> ComfyfnError:
        if self._jobs.done() and not self._supervisor:
            return NotHereError("this service has no engine (ENGINE=none): send the job asynchronously")
        self._refusal = self._refusal or "the function could not be built; its log says why"
        return StorageUnavailableError(self._refusal)

    def _begin_to_bring(self) -> None:
        """Begin with what is wanted from the start, and have the transfer process ready for what the jobs want.

        A pod that starts from zero has a job waiting whose models are not there yet: importing boto3 would come before
        their first byte, and comes while the engine boots instead.
        """
        if not self.line.models.read_only:
            self.line.fetcher.start()
        self.line.start_models.start()

    @property
    def jobs(self) -> Jobs:
        """Jobs, whichever pod runs them; waits until they can be asked for.

        Raises:
            StorageUnavailableError: They can't, or not yet, or the results store has no create-if-absent.
        """
        return self._awaited(self._jobs)

    @property
    def line(self) -> Line:
        """What jobs run on here; waits until it is built.

        Raises:
            StorageUnavailableError: It can't be built, or not yet, or the results store has no create-if-absent.
            NotHereError: This service has no engine.
        """
        return self._awaited(self._line)

    def _awaited(self, part: Future[_Part]) -> _Part:
        if self._refusal:
            raise StorageUnavailableError(self._refusal)
        try:
            return part.result(self._build_seconds)
        except TimeoutError as error:
            raise StorageUnavailableError("the function is still being built: storage is slow to answer") from error

    @cached_property
    def links(self) -> ObjectStore:
        """The results as clients reach them; only for links."""
        from function.storage import open_store  # noqa: PLC0415  (see above)

        return open_store(self.settings.results_url, endpoint_url=self.settings.link_endpoint_url or None)

    @cached_property
    def templates(self) -> TemplateStore:
        """Templates by name; they need no engine."""
        from function.storage import open_store  # noqa: PLC0415  (see above)
        from function.templates.store import TemplateStore  # noqa: PLC0415

        return TemplateStore(open_store(self.settings.workflows_url))

    @cached_property
    def upload_rules(self) -> UploadRules:
        """Which uploaded object runs what."""
        from function.storage import open_store  # noqa: PLC0415  (see above)
        from function.uploads import UploadRules  # noqa: PLC0415

        uploads = open_store(self.settings.uploads_url)
        return UploadRules(uploads, results_url=self.settings.results_url, templates=self.templates)

    def stop(self) -> None:
        """Stop the engine and let the GPU go."""
        if self._warm_up:
            self._warm_up.stop()
        for part in (self._jobs, self._line):  # the line before the engine, to which it has connections
            if part.done() and not part.exception():
                part.result().stop()
        if self._supervisor:
            self._supervisor.stop()
        self._clients.stop()

    @property
    def alive(self) -> bool:
        """Whether the process can do its work: nothing it needs is refused and the engine runs, even if it boots."""
        failed = self._built and self._line.result().start_models.failed
        return not self._refusal and not failed and (self._supervisor is None or self._supervisor.alive)

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
        if missing := self._missing_models():
            return missing
        if self._supervisor and not self._supervisor.ready:
            return self._supervisor.last_error or "the engine is starting"
        return self._warm_up.problem if self._warm_up else ""

    @property
    def _built(self) -> bool:
        return self._line.done() and not self._line.exception()

    def _lost_gpus(self) -> str:
        return self._line.result().gpus.lost() if self._built else ""

    def _missing_models(self) -> str:
        """What the manifest wants before anybody counts on this pod."""
        if self._built:
            return self._line.result().start_models.problem
        return (
            "the models of the manifest are being brought"
            if self._supervisor and self.settings.manifest.before_start
            else ""
        )

    def admitted(self) -> AbstractContextManager[None]:
        """Count a job from before its body is read until it is answered; see `Admission.admitted`."""
        return self.admission.admitted()

    def submit(self, job: Job) -> bool:
        """Record an asynchronous job and send it on its way; say whether it is new.

        What can be refused is refused before anything is recorded, so that the same Idempotency-Key may be used again.

        Raises:
            JobFailedError: The workflow can't run.
            DrainingError: The pod is shutting down.
        """
        from function.workflow import parse_workflow  # noqa: PLC0415  (see above)

        if self.has_engine:
            self.line.check(job)
        else:
            parse_workflow(job.workflow)
        return self.jobs.submit(job)

    @property
    def has_engine(self) -> bool:
        """Whether jobs can run here."""
        return self._supervisor is not None

    def handle(self, job: Job, *, connection: socket | None = None, recorded: bool = False) -> JobResult:
        """Run one admitted job; see `JobHandler.handle`."""
        return self._handler.handle(job, connection=connection, recorded=recorded)

    def cancel(self, job_id: str) -> None:
        """End a job wherever it is; see `JobHandler.cancel`."""
        self._handler.cancel(job_id)

    def interrupt(self, client_id: str) -> bool:
        """End a job by the id that its client knows; see `JobHandler.stop`."""
        return self._handler.stop(client_id)

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is that waits or runs in this process."""
        return self._handler.progress(job_id)

    def _run_warm_up(self) -> None:
        from function.job import Job, random_job_id  # noqa: PLC0415  (imports pydantic; see above)

        workflow = self.settings.warmup_workflow or self._fetched_warm_up()
        job = Job(random_job_id(), workflow, label="warm-up", stored=False, interactive=True)
        self._handler.warm_up(job)

    def _fetched_warm_up(self) -> Workflow:
        from function.storage.origins import fetch_rules  # noqa: PLC0415

        settings = self.settings
        if settings.warmup_url is None:
            return {}
        return fetch_workflow(settings.warmup_url, rules=fetch_rules(settings), max_bytes=settings.max_body_bytes)

    def drain(self) -> None:
        """Shut down in order: refuse jobs, send waiting ones away, give the running one DRAIN_SECONDS, then stop it."""
        self.admission.drain()
        self._line.add_done_callback(_stop_downloads)
        if self.admission.wait_until_idle(self.settings.drain_seconds):
            return
        _log.warning("the running job did not end within DRAIN_SECONDS=%d", self.settings.drain_seconds)
        while not self.admission.wait_until_idle(_INTERRUPT_SECONDS):
            self._handler.interrupt(DrainingError("this pod shut down before the job could end", retry_after_seconds=1))


def _stop_downloads(line: Future[Line]) -> None:
    """What no job waits for is of no use to a pod that ends."""
    if not line.exception():
        line.result().start_models.stop()
        line.result().background.stop()

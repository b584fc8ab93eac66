"""Jobs that this process has admitted: recorded, watched for their clients, given the GPU in turn, cancelled."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from function.admission import Turn
from function.cancellation import Cancellation
from function.errors import ClientGoneError, ComfyfnError, JobCancelledError, JobFailedError, JobRunningError
from function.jobs.state import JobState
from function.logs import job_context
from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from socket import socket

    from function.admission import Admission
    from function.clients import ClientWatch
    from function.job import Job, JobResult
    from function.jobs.service import Jobs
    from function.pipeline import Line
    from function.telemetry import Metrics

_log = logging.getLogger("comfyfn")


class JobHandler:
    """Takes admitted jobs down the line; one at a time has the GPU, while the outputs of others are stored.

    Args:
        jobs: Jobs, whichever pod runs them; asked when it is needed, because it may have to be waited for.
        line: What jobs run on here; likewise.
        admission: Whose turn on the GPU it is.
        clients: Whether the clients that wait are still there.
        metrics: Counts jobs.
        deadline_seconds: Default and upper limit of a job's own.
    """

    def __init__(
        self,
        *,
        jobs: Callable[[], Jobs],
        line: Callable[[], Line],
        admission: Admission,
        clients: ClientWatch,
        metrics: Metrics,
        deadline_seconds: int,
    ) -> None:
        self._jobs = jobs
        self._line = line
        self._admission = admission
        self._clients = clients
        self._metrics = metrics
        self._deadline_seconds = deadline_seconds
        self._tracked: dict[str, _Tracked] = {}
        self._tracked_lock = threading.Lock()
        self._running = Cancellation()

    def handle(self, job: Job, *, connection: socket | None = None, recorded: bool = False) -> JobResult:
        """Run one admitted job; see `pipeline.run_job` for what comes of it.

        A job whose client goes away while it waits for the GPU leaves the queue. One that runs is interrupted unless
        it is stored: that one goes on, so that it can be answered from its manifest when it is delivered again.

        Args:
            job: The job.
            connection: Where its client waits for the answer; None if that can't be watched.
            recorded: Whether the job was submitted before.

        Raises:
            ClientGoneError: The client went away.
            JobRunningError: This process is running the same job.
            DrainingError: The pod is shutting down before the job started, or it could not end in time.
        """
        with self._tracking(job) as tracked:
            return self._counted(job, tracked, connection, recorded=recorded)

    def warm_up(self, job: Job) -> None:
        """Run a job that nobody sent; it is not counted."""
        with self._tracking(job) as tracked:
            self._run(job, tracked, time.monotonic(), new=False)

    @contextmanager
    def _tracking(self, job: Job) -> Iterator[_Tracked]:
        tracked = _Tracked(job)
        with self._tracked_lock:
            if job.job_id in self._tracked:
                raise JobRunningError(f"job {job.job_id} is running in this pod")
            self._tracked[job.job_id] = tracked
        try:
            with job_context(job.job_id):
                yield tracked
        finally:
            del self._tracked[job.job_id]

    def _counted(self, job: Job, tracked: _Tracked, connection: socket | None, *, recorded: bool) -> JobResult:
        started = time.monotonic()
        outcome = "internal"
        try:
            result = self._recorded(job, tracked, started, connection, recorded=recorded)
            outcome = str(result.error["code"]) if result.error else "completed"
        except ComfyfnError as error:
            outcome = error.code
            raise
        else:
            return result
        finally:
            if not tracked.is_replay:
                self._count(outcome, time.monotonic() - started)

    def _count(self, outcome: str, seconds: float) -> None:
        self._metrics.jobs.labels(outcome=outcome).inc()
        self._metrics.job_seconds.observe(seconds)
        _log.info("job ended", extra={"outcome": outcome, "seconds": round(seconds, 3)})

    def _recorded(
        self, job: Job, tracked: _Tracked, started: float, connection: socket | None, *, recorded: bool
    ) -> JobResult:
        """Record a job that is stored; one that was there already may have its result, or its pod."""
        new = job.stored and (self._jobs().records.is_fresh(job) if recorded else self._jobs().submit(job))
        if job.stored and not new:
            standing = self._jobs().records.standing(job.job_id)
            if not isinstance(standing, JobState):
                tracked.is_replay = True
                return standing
            new = standing.untouched
        if recorded:
            self._jobs().check_recorded(job)
        try:
            result = self._watched(job, tracked, started, connection, new=new)
        except JobCancelledError:
            cancelled = self._jobs().records.result(job.job_id) if job.stored else None
            if cancelled is None:
                raise
            return cancelled
        self._jobs().answered(job)
        return result

    def _watched(
        self, job: Job, tracked: _Tracked, started: float, connection: socket | None, *, new: bool
    ) -> JobResult:
        def on_gone() -> None:
            tracked.waiting.cancel(ClientGoneError("the client closed the connection before the job had ended"))
            self._admission.look_again()

        with self._clients.watching(connection, on_gone):
            return self._run(job, tracked, started, new=new)

    def _run(self, job: Job, tracked: _Tracked, started: float, *, new: bool) -> JobResult:
        limit = self._deadline_seconds
        deadline = started + min(job.deadline_seconds or limit, limit)

        def on_progress(progress: Progress) -> None:
            tracked.progress = progress

        def on_position(before: int) -> None:
            on_progress(Progress("queued", 0.0, f"{before} before it"))

        def on_preparation(progress: Progress) -> None:
            tracked.waiting.check()
            self._admission.refuse_when_draining()
            on_progress(progress)

        line = self._line()
        with ExitStack() as holding:
            try:
                prepared = holding.enter_context(
                    line.prepared(
                        job, prefetching=self._admission.depth > 1, deadline=deadline, on_progress=on_preparation
                    )
                )
            except JobCancelledError:
                raise
            except JobFailedError as error:
                if not job.stored:
                    raise
                return self._jobs().end_refused(job, error, new=new, cancellation=tracked.waiting)
            gpu = self._admission.turn(
                deadline=deadline,
                on_position=on_position,
                cancellation=tracked.waiting,
                interactive=job.interactive,
                since=started,
            )
            with ExitStack() as on_gpu:
                on_gpu.enter_context(gpu)
                on_gpu.callback(line.engine.recycle)
                self._running = tracked.running = Cancellation() if job.stored else tracked.waiting
                turn = Turn(deadline, tracked.running, on_progress, on_gpu.close)
                return line.run_job(prepared, turn, new=new)

    def cancel(self, job_id: str) -> None:
        """End a job wherever it is: one that another pod runs ends at that pod's next sign of life.

        Raises:
            JobMissingError: There is no such job.
        """
        self._jobs().records.cancel(job_id)
        self._end_here(job_id)

    def _end_here(self, job_id: str) -> None:
        if tracked := self._tracked.get(job_id):
            reason = JobCancelledError(f"job {job_id} was cancelled")
            tracked.waiting.cancel(reason)
            tracked.running.cancel(reason)
            self._admission.look_again()

    def stop(self, client_id: str) -> bool:
        """End the newest job that its client knows by an id, wherever it is; whether there was one to be ended.

        A job that stores nothing is known only to the process that has it.
        """
        here = [tracked.job for tracked in tuple(self._tracked.values()) if tracked.is_called(client_id)]
        if here and not here[-1].stored:
            self._end_here(here[-1].job_id)
            return True
        job_id = here[-1].job_id if here else self._jobs().find(client_id)
        if job_id:
            self.cancel(job_id)
        return job_id is not None

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is that waits or runs in this process."""
        tracked = self._tracked.get(job_id)
        return tracked.progress if tracked else None

    def interrupt(self, reason: ComfyfnError) -> None:
        """End the job that has the GPU; one that gets its turn only now is another one.

        One whose outputs are being stored ends by itself.
        """
        self._running.cancel(reason)


class _Tracked:
    """A job that this process has admitted."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.progress = Progress("queued", 0.0)
        self.is_replay = False  # its result was there already
        self.waiting = Cancellation()  # ends its wait for the GPU
        self.running = Cancellation()  # ends its run

    def is_called(self, client_id: str) -> bool:
        """Whether its client knows it by this id."""
        return client_id == self.job.job_id or (bool(self.job.request) and client_id == self.job.label)

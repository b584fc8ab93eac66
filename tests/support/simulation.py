"""Pods and a store in simulated time: at every request, wait and engine step a test decides who goes on.

Each pod's code runs in real threads, of which one at a time goes on: a thread that comes to such a point parks until
`World.go` picks it. Nothing sleeps, so that hours pass in milliseconds, and a history repeats exactly.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from function.cancellation import Cancellation
from function.errors import ComfyfnError, DrainingError, EngineUnavailableError, JobRunningError
from function.job import Job, JobResult, Output
from function.jobs.attempt import run_attempt
from function.jobs.lease import Lease
from function.jobs.records import JobRecords
from function.storage.objects import Listing, ObjectInfo, ObjectMissingError, TransientStorageError
from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

ENGINE_STEPS = 6
ENGINE_STEP_SECONDS = 4.0

WELL, REFUSED, LOST, LATE = "well", "refused", "lost", "late"
"""What becomes of a request: it succeeds; nothing happens; its answer is lost; it fails and happens later."""


class KilledError(BaseException):
    """Ends the threads of a pod that was killed, wherever they are."""


class Task:
    """A thread of a pod, which runs only while `World.go` waits for it."""

    def __init__(self, world: World, pod: Pod, work: Callable[[], object]) -> None:
        self.pod = pod
        self.at = "start"
        self.ready: Callable[[], bool] = lambda: True
        self.ended = False
        self.outcome: object = None
        self._fate = WELL
        self._go = threading.Semaphore(0)
        self._parked = threading.Semaphore(0)
        self._work = work
        self._thread = threading.Thread(target=self._run, args=(world,), daemon=True)
        self._thread.start()

    def _run(self, world: World) -> None:
        world.local.task = self
        self._go.acquire()
        try:
            if not self.pod.dead:
                self.outcome = self._work()
        except ComfyfnError as error:
            self.outcome = error
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001  (raised again by `go`)
            self.outcome = error
        self.ended = True
        self._parked.release()

    def park(self, at: str, ready: Callable[[], bool] = lambda: True) -> str:
        """Called by the task's own thread: wait to be picked; what becomes of a request."""
        if self.pod.dead:
            raise KilledError
        self.at, self.ready = at, ready
        self._parked.release()
        self._go.acquire()
        if self.pod.dead:
            raise KilledError
        return self._fate

    def go(self, fate: str) -> None:
        """Let the thread run to its next point, or to its end."""
        self._fate = fate
        self._go.release()
        self._parked.acquire()

    def finish(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()


@dataclass
class Pod:
    """A process with a clock of its own."""

    world: World
    number: int
    offset_seconds: float
    rate: float
    dead: bool = False
    draining: bool = False
    tracked: set[str] = field(default_factory=set)
    running: Cancellation | None = None

    def clock(self) -> float:
        """Monotonic seconds of this pod."""
        return self.offset_seconds + self.world.now * self.rate

    def sleep(self, seconds: float) -> None:
        """Wait by this pod's clock."""
        until = self.clock() + seconds
        self.world.park("sleep", lambda: self.clock() >= until)


class World:
    """A store, pods, and a clock that the test moves.

    Args:
        lease_seconds: As in the settings.
        rounded: Whether the store's times are full seconds, and a listing is dated when its answer leaves (S3).

    Attributes:
        now: Seconds by the store's clock.
        engine_runs: How often the engine began, by job and attempt.
    """

    def __init__(self, *, lease_seconds: int = 20, rounded: bool = True) -> None:
        self.now = 0.0
        self.lease_seconds = lease_seconds
        self.rounded = rounded
        self.local = threading.local()
        self.objects: dict[str, tuple[float, bytes]] = {}
        self.late: list[Callable[[], None]] = []
        self.tasks: list[Task] = []
        self.pods: list[Pod] = []
        self.holders: dict[tuple[str, int], Holder] = {}
        self.engine_runs: dict[tuple[str, int], int] = {}
        self.signs: dict[tuple[str, int], float] = {}

    def add_pod(self, *, offset_seconds: float = 0.0, rate: float = 1.0) -> Pod:
        """Start a pod."""
        pod = Pod(self, len(self.pods), offset_seconds, rate)
        self.pods.append(pod)
        return pod

    def begin(self, pod: Pod, work: Callable[[], object]) -> Task:
        """Start a thread in a pod; it waits to be picked."""
        task = Task(self, pod, work)
        self.tasks.append(task)
        return task

    def park(self, at: str, ready: Callable[[], bool] = lambda: True) -> str:
        """A point at which the test decides; called in a pod's thread."""
        fate: str = self.local.task.park(at, ready)
        return fate

    @property
    def pending(self) -> list[Task]:
        """Tasks that could go on."""
        return [task for task in self.tasks if not task.ended and (task.pod.dead or task.ready())]

    def go(self, task: Task, fate: str = WELL) -> None:
        """Let one task go on to its next point."""
        task.go(fate)
        if task.ended:
            self.tasks.remove(task)
            if isinstance(task.outcome, BaseException) and not isinstance(task.outcome, ComfyfnError):
                raise task.outcome

    def kill(self, pod: Pod) -> None:
        """End a pod without a word; what it has sent may still arrive."""
        pod.dead = True
        for task in [task for task in self.tasks if task.pod is pod]:
            self.go(task)
        self.pods.remove(pod)

    def drain(self, pod: Pod) -> None:
        """Have a pod's job end now, as after SIGTERM and DRAIN_SECONDS."""
        pod.draining = True
        if pod.running:
            pod.running.cancel(DrainingError("shutting down"))

    def close(self) -> None:
        """End every thread."""
        for pod in tuple(self.pods):
            self.kill(pod)

    def settle(self, *, seconds_per_step: float = 0.01) -> None:
        """Let everything go on, without faults, until nothing is left to do."""
        while self.tasks:
            self.now += seconds_per_step
            for task in self.pending:
                if not task.ended:
                    self.go(task)
            if not self.pending:
                self.now += 1.0

    def records(self, pod: Pod) -> JobRecords:
        """The records as a pod sees them."""
        return JobRecords(
            SimulatedStore(self, pod),  # type: ignore[arg-type]  # what records use of a store
            lease_seconds=self.lease_seconds,
            clock=lambda: EPOCH + timedelta(seconds=pod.clock()),
        )

    def deliver(self, pod: Pod, job: Job) -> Task:
        """Bring a job to a pod, as one more delivery of its event."""
        return self.begin(pod, lambda: self._handle(pod, job))

    def _handle(self, pod: Pod, job: Job) -> JobResult:
        """What `lifecycle.Function` does for an event: record, look for a result, wait for the GPU, run."""
        if pod.draining:
            raise DrainingError("shutting down")
        if job.job_id in pod.tracked:
            raise JobRunningError("running in this pod")
        pod.tracked.add(job.job_id)
        try:
            records = self.records(pod)
            new = records.submit(job)
            if not new:
                standing = records.standing(job.job_id)
                if isinstance(standing, JobResult):
                    return standing
                new = standing.untouched
            self.park("turn", lambda: pod.running is None or pod.draining)
            if pod.draining:
                raise DrainingError("shutting down")
            cancellation = pod.running = Cancellation(clock=pod.clock)
            try:
                return run_attempt(
                    records,
                    job,
                    lambda attempt, on_progress: self._work(pod, job, attempt, cancellation, on_progress),
                    new=new,
                    cancellation=cancellation,
                    on_progress=lambda _: None,
                    open_lease=_lease_of(self, pod),
                )
            finally:
                pod.running = None
        finally:
            pod.tracked.discard(job.job_id)

    def _work(
        self,
        pod: Pod,
        job: Job,
        attempt: int,
        cancellation: Cancellation,
        on_progress: Callable[[Progress], None],
    ) -> JobResult:
        """An engine run of a few steps, and an output that is deleted unless the run ends well."""
        store = SimulatedStore(self, pod)
        key = f"outputs/{job.job_id}/{attempt}/a.png"
        holder = self.holders[job.job_id, attempt] = Holder(pod, cancellation)
        self.engine_runs[job.job_id, attempt] = self.engine_runs.get((job.job_id, attempt), 0) + 1
        try:
            for step in range(ENGINE_STEPS):
                self._step_engine(pod)
                cancellation.check()
                self.check_alone(job.job_id, attempt)
                on_progress(Progress("executing", step / ENGINE_STEPS))
            store.put(key, f"attempt {attempt}".encode())
        except BaseException:
            with suppress(ComfyfnError):
                store.delete(key)
            raise
        finally:
            holder.ended = True
        output = Output("9", "images", "a.png", "", "image/png", 1, "", url=key)
        return JobResult(job.job_id, "completed", attempt, "", to_text(self.now), outputs=(output,))

    def _step_engine(self, pod: Pod) -> None:
        until = pod.clock() + ENGINE_STEP_SECONDS
        if self.park("engine", lambda: pod.clock() >= until) == REFUSED:
            raise EngineUnavailableError("the engine died")

    def check_alone(self, job_id: str, attempt: int) -> None:
        """Make sure that who is told to go on is the last who took the job."""
        later = [number for number in self.attempts(job_id) if number > attempt]
        assert not later, f"attempt {attempt} goes on although attempt {later} was claimed"

    def attempts(self, job_id: str) -> list[int]:
        """Attempts that were claimed."""
        names = [key.removeprefix(f"jobs/{job_id}/attempt-") for key in self.objects if key.endswith(".json")]
        return sorted(int(name.removesuffix(".json")) for name in names if name[0].isdigit())

    def land(self, key: str, data: bytes) -> None:
        """A write arrives at the store."""
        parts = key.removeprefix("jobs/").split("/")
        if key.startswith("jobs/") and parts[1].startswith("attempt-"):
            number, _, kind = parts[1].removeprefix("attempt-").partition(".")
            if kind == "json":
                self._check_claim(parts[0], int(number))
            if kind == "json" or (kind == "beat" and self._is_held(parts[0], int(number))):
                self.signs[parts[0], int(number)] = self.now
        assert not (key.endswith("/result.json") and key in self.objects), "a second result"
        self.objects[key] = (self.now, data)

    def _check_claim(self, job_id: str, attempt: int) -> None:
        """A new attempt only after the one before was handed back, or gave no sign of life for a whole lease."""
        before = attempt - 1
        if not before:
            return
        ended = any(f"jobs/{job_id}/attempt-{before}.{kind}" in self.objects for kind in ("returned", "failed"))
        silent_seconds = self.now - self.signs[job_id, before]
        assert ended or silent_seconds > self.lease_seconds, f"{attempt} was claimed after {silent_seconds} s"
        spent = [n for n in range(1, attempt) if f"jobs/{job_id}/attempt-{n}.returned" not in self.objects]
        assert len(spent) < 3 + 1, "more attempts than are allowed"
        held = [number for number in range(1, attempt) if self._is_held(job_id, number)]
        assert not held, f"attempt {held} holds the job while {attempt} is claimed"

    def _is_held(self, job_id: str, attempt: int) -> bool:
        """Whether somebody works on an attempt and knows of no reason to stop."""
        holder = self.holders.get((job_id, attempt))
        return holder is not None and not holder.ended and not holder.pod.dead and not holder.cancellation.reason


@dataclass
class Holder:
    """Who works on an attempt."""

    pod: Pod
    cancellation: Cancellation
    ended: bool = False


def to_text(seconds: float) -> str:
    """A timestamp."""
    return (EPOCH + timedelta(seconds=seconds)).isoformat()


@dataclass(frozen=True)
class SimulatedStore:
    """What records use of a store, as one pod reaches it: each request is sent, arrives, and is answered."""

    world: World
    pod: Pod

    def put(self, key: str, data: bytes, *, media_type: str = "") -> None:
        """Write."""
        del media_type
        self._request(f"put {key}", lambda: self.world.land(key, data))

    def create(self, key: str, data: bytes) -> bool:
        """Write unless it is there; like the store's client, it knows its own write again."""

        def land() -> bool:
            if key in self.world.objects:
                return False
            self.world.land(key, data)
            return True

        return bool(self._request(f"create {key}", land))

    def delete(self, key: str) -> None:
        """Remove."""
        self._request(f"delete {key}", lambda: self.world.objects.pop(key, None))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read."""
        del max_bytes
        found = self._request(f"get {key}", lambda: self.world.objects.get(key))
        if found is None:
            raise ObjectMissingError(key)
        return bytes(found[1])

    def list_page(self, prefix: str = "", *, start_after: str = "", limit: int = 1000) -> Listing:
        """List; a rounding store dates the answer when it leaves, less what the pod saw the request take."""
        began = self.pod.clock()

        def land() -> tuple[float, list[ObjectInfo]]:
            keys = sorted(key for key in self.world.objects if key.startswith(prefix) and key > start_after)
            return self.world.now, [self._describe(key) for key in keys[:limit]]

        landed_at, found = self._request(f"list {prefix}", land)
        taken_at = landed_at
        if self.world.rounded:
            taken_at = int(self.world.now) - (self.pod.clock() - began)
        return Listing(tuple(found), EPOCH + timedelta(seconds=taken_at), complete=True)

    def _describe(self, key: str) -> ObjectInfo:
        written_at, data = self.world.objects[key]
        seconds = int(written_at) if self.world.rounded else written_at
        return ObjectInfo(key, len(data), "", EPOCH + timedelta(seconds=seconds))

    def _request(self, what: str, land: Callable[[], Any]) -> Any:
        fate = self.world.park(f"send {what}")
        if fate in {REFUSED, LATE}:
            if fate == LATE and not what.startswith(("get", "list")):
                self.world.late.append(land)
            self.world.park(f"fail {what}")
            raise TransientStorageError(f"{what}: {fate}")
        answer = land()
        self.world.park(f"answer {what}")
        if fate == LOST:
            raise TransientStorageError(f"{what}: {fate}")
        return answer


def _lease_of(world: World, pod: Pod) -> type[Lease]:
    """Leases that beat in a task of the world instead of a thread."""

    class SimulatedLease(Lease):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, sleep=pod.sleep, stopped=SimulatedEvent(world, pod))

        def __enter__(self) -> Lease:
            self.task = world.begin(pod, self._keep)
            return self

        def __exit__(self, *_: object) -> None:
            self._stopped.set()
            give_up_at = pod.clock() + 5.0
            with suppress(KilledError):
                world.park("join", lambda: self.task.ended or pod.clock() >= give_up_at)

    return SimulatedLease


class SimulatedEvent(threading.Event):
    """An event that is waited for in simulated time."""

    def __init__(self, world: World, pod: Pod) -> None:
        super().__init__()
        self._world = world
        self._pod = pod

    def wait(self, timeout: float | None = None) -> bool:
        """Wait by the pod's clock."""
        until = self._pod.clock() + (timeout or 0.0)
        self._world.park("wait", lambda: self.is_set() or self._pod.clock() >= until)
        return self.is_set()


def some_job() -> Job:
    """A job, always the same."""
    return replace(Job("0" * 32, {"1": {"class_type": "X", "inputs": {}}}), request_sha256="")


def stored_result(world: World, job_id: str) -> dict[str, Any] | None:
    """The manifest as it lies in the store."""
    found = world.objects.get(f"jobs/{job_id}/result.json")
    return json.loads(found[1]) if found else None

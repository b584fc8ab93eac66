"""Claims, leases, beats and results over random interleavings.

The code of records, leases and attempts is the real one; store, clocks and threads are simulated, so that every request
may be slow, refused, answered in vain or late, in every order. See `tests/support/simulation.py` for what is checked
at each write: a claim only after a hand-back or a whole lease of silence, nobody held at work beside it, one result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function.errors import JobRunningError, StorageUnavailableError
from function.job import JobResult
from function.jobs.manifest import to_json, to_manifest
from tests.support.simulation import LATE, LOST, REFUSED, WELL, Pod, Task, World, some_job, stored_result

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB = some_job()
RESULT_KEY = f"jobs/{JOB.job_id}/result.json"
PODS = 3

odds = st.sampled_from([0.0, 0.02, 0.1])


@dataclass
class History:
    """What may happen to one job, and how often.

    Attributes:
        random: Decides.
        fault: Share of requests that go wrong.
        kill: Share of decisions that end a pod; `drain`, `deliver` and `cancel` alike.
        slow: Share of steps before which seconds pass, or a whole lease.
        trouble: Share of decisions that freeze a pod, cut it off from storage, or end that.
        deliveries: Those that have not ended.
        frozen: Pods that get no CPU; `cut_off`: pods most of whose requests go wrong.
    """

    world: World
    random: Random
    fault: float
    kill: float
    drain: float
    cancel: float
    slow: float
    trouble: float
    deliveries: list[Task] = field(default_factory=list)
    frozen: list[Pod] = field(default_factory=list)
    cut_off: list[Pod] = field(default_factory=list)

    def play(self, decisions: int) -> None:
        """Make so many decisions, and some more once the job has ended."""
        self.deliver()
        for _ in range(decisions):
            if RESULT_KEY in self.world.objects and self.decides(0.05):
                return
            if self.decides(self.kill):
                self.world.kill(self.pod())
                self.add_pod()
            elif self.decides(self.drain):
                self.world.drain(self.pod())
            elif self.decides(self.cancel):
                self.begin_cancel(self.pod())
            elif self.decides(self.trouble):
                self.change_troubles()
            elif self.decides(0.05) or not self.world.tasks:
                self.deliver()
            elif self.world.late and self.decides(0.05):
                self.world.late.pop(self.random.randrange(len(self.world.late)))()
            else:
                self.go_on()
            self.check()

    def decides(self, share: float) -> bool:
        """Whether this is one of those times."""
        return self.random.random() < share

    def pod(self) -> Pod:
        """Any pod, in place of one that shuts down a fresh one."""
        pod = self.random.choice(self.world.pods)
        return pod if not pod.draining or self.decides(0.5) or len(self.world.pods) > 2 * PODS else self.add_pod()

    def add_pod(self) -> Pod:
        """A pod whose clock shows another time than the store's, and goes wrong by up to 2 %."""
        return self.world.add_pod(
            offset_seconds=self.random.uniform(-1e6, 1e6), rate=self.random.choice([0.98, 1.0, 1.02])
        )

    def deliver(self) -> None:
        """A sender delivers the event, perhaps again."""
        self.deliveries.append(self.world.deliver(self.pod(), JOB))

    def begin_cancel(self, pod: Pod) -> None:
        """Somebody asks a pod for the job's end, once it is recorded."""
        if f"jobs/{JOB.job_id}/job.json" in self.world.objects:
            self.world.begin(pod, lambda: self.world.records(pod).cancel(JOB.job_id))

    def change_troubles(self) -> None:
        """Trouble comes and goes."""
        troubles = self.random.choice([self.frozen, self.cut_off])
        if troubles and self.decides(0.5):
            troubles.clear()
        else:
            troubles.append(self.random.choice(self.world.pods))

    def go_on(self) -> None:
        """A thread goes on by one step, perhaps after a while, and perhaps in vain."""
        self.world.now += self.random.choice([0.5, 1.0, 2.0, 5.0, 19.0, 21.0]) if self.decides(self.slow) else 0.01
        pending = [task for task in self.world.pending if task.pod not in self.frozen]
        if not pending:
            self.world.now += 1.0
            return
        task = self.random.choice(pending)
        faulty = self.decides(0.9 if task.pod in self.cut_off and task.at.startswith("send") else self.fault)
        self.world.go(task, self.random.choice([REFUSED, LOST, LATE]) if faulty else WELL)

    def check(self) -> None:
        """What holds at all times."""
        assert set(self.world.engine_runs.values()) <= {1}, "an attempt ran the engine twice"
        for task in [task for task in self.deliveries if task.ended]:
            self.deliveries.remove(task)
            if isinstance(task.outcome, JobResult):
                assert to_json(to_manifest(task.outcome)) == self.world.objects[RESULT_KEY][1], "another result"
        result = stored_result(self.world, JOB.job_id)
        for output in result["outputs"] if result else ():
            assert self.world.objects[output["url"]][1] == f"attempt {result['attempt']}".encode()

    def end(self) -> JobResult:
        """Faults cease, and the sender goes on to deliver, after each refusal with a pause, as a broker does."""
        self.world.settle()
        for _ in range(3):
            task = self.world.deliver(self.add_pod(), JOB)
            self.world.settle()
            if isinstance(task.outcome, JobResult):
                self.deliveries.append(task)
                self.check()
                return task.outcome
            assert isinstance(task.outcome, JobRunningError), task.outcome
            self.world.now += self.world.lease_seconds + 2
        raise AssertionError("no result in three deliveries without a fault")


histories = st.builds(
    lambda seed, rounded, fault, kill, drain, cancel, slow, trouble: History(
        World(rounded=rounded),
        Random(seed),  # noqa: S311  (a history, no secret)
        fault,
        kill / 4,
        drain / 4,
        cancel / 10,
        slow,
        trouble / 2,
    ),
    st.integers(0, 2**32),
    st.booleans(),
    *[odds] * 6,
)


@settings(max_examples=200, deadline=None)
@given(history=histories)
def test_one_pod_at_a_time_one_run_per_attempt_one_result(history: History) -> None:
    """Whatever is delivered, killed, handed back, cancelled, slow or lost; and the job ends once faults cease."""
    try:
        for _ in range(PODS):
            history.add_pod()
        history.play(300)
        history.end()
    finally:
        history.world.close()


@pytest.fixture
def world() -> Iterator[World]:
    """A world whose store rounds times, as S3 does."""
    world = World()
    yield world
    world.close()


def go_until(world: World, pod: Pod, at: str) -> Task:
    """Let a pod go on until one of its threads is about to do something; that thread."""
    while True:
        if found := [task for task in world.tasks if task.pod is pod and task.at.startswith(at)]:
            return found[0]
        pending = [task for task in world.pending if task.pod is pod]
        world.now += 0.01 if pending else 0.25
        for task in pending:
            world.go(task)


def answer_of(world: World, task: Task) -> object:
    """Let a thread's pod go on, and no other one, until the thread has ended."""
    while not task.ended:
        pending = [one for one in world.pending if one.pod is task.pod]
        world.now += 0.01 if pending else 0.25
        for one in pending:
            world.go(one)
    return task.outcome


def test_a_lease_lasts_from_the_beginning_of_its_last_beat(world: World) -> None:
    """Not from its answer, which may take long: the store has dated the beat when it came."""
    holder, taker = world.add_pod(), world.add_pod(offset_seconds=1e5)
    world.deliver(holder, JOB)
    beat = go_until(world, holder, f"send put jobs/{JOB.job_id}/attempt-1.beat")
    world.go(beat)
    landed_at = world.now
    world.now += 14
    world.go(beat)  # its answer
    world.now = landed_at + world.lease_seconds + 2
    assert isinstance(answer_of(world, world.deliver(taker, JOB)), JobResult)


def test_a_listing_that_takes_long_makes_no_lease_look_overdue(world: World) -> None:
    """A beat that came while the answer was under way is not in it: the job is still held."""
    holder, taker = world.add_pod(), world.add_pod()
    world.deliver(holder, JOB)
    go_until(world, holder, "wait")
    claimed_at = world.now
    world.now += world.lease_seconds - 1
    claim = world.begin(taker, lambda: world.records(taker).claim(JOB.job_id))
    go_until(world, taker, f"answer list jobs/{JOB.job_id}/")
    go_until(world, holder, f"answer put jobs/{JOB.job_id}/attempt-1.beat")
    world.now = claimed_at + world.lease_seconds + 5
    assert isinstance(answer_of(world, claim), JobRunningError)


def test_an_attempt_whose_result_can_not_be_stored_is_handed_back(world: World) -> None:
    """The next delivery does not wait for the end of its lease."""
    pod = world.add_pod()
    first = world.deliver(pod, JOB)
    world.go(go_until(world, pod, f"send create {RESULT_KEY}"), REFUSED)
    world.settle()
    assert isinstance(first.outcome, StorageUnavailableError)
    again = world.deliver(pod, JOB)
    world.settle()
    assert isinstance(again.outcome, JobResult)
    assert again.outcome.attempt == 2


def test_an_engine_run_that_outlives_its_lease_is_told_to_end_and_stores_no_second_result(world: World) -> None:
    """It is the store that was away: whoever took the job has the result, and the late one answers 409."""
    holder, taker = world.add_pod(), world.add_pod(rate=1.02)
    first = world.deliver(holder, JOB)
    go_until(world, holder, "wait")
    world.now += world.lease_seconds + 2
    answer = answer_of(world, world.deliver(taker, JOB))
    world.settle()
    assert isinstance(answer, JobResult)
    assert answer.attempt == 2
    assert isinstance(first.outcome, JobRunningError)
    assert world.engine_runs == {(JOB.job_id, 1): 1, (JOB.job_id, 2): 1}

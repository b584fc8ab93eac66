"""The supervisor against real processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.engine.command import EngineCommand
from function.engine.process import free_port
from function.engine.supervisor import EngineState, Supervisor
from function.errors import EngineNotReadyError
from tests.support import replay
from tests.support.replay import ReplayEngine, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
FAST = (0.01, 0.05)


def engine_argv(*flags: str) -> tuple[str, ...]:
    """The command of a replay engine."""
    return (sys.executable, replay.__file__, *flags)


def soon() -> float:
    """A deadline that only a hanging test reaches."""
    return time.monotonic() + 20


def eventually(condition: Callable[[], object]) -> bool:
    """Whether a condition comes true before `soon`."""
    deadline = soon()
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def group_members(group: int) -> list[int]:
    """Living processes of a group; zombies whose reaping is init's business don't count."""
    members = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, group_of = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group_of) == group and state != "Z":
            members.append(int(status.parent.name))
    return members


def is_gone(pid: int) -> bool:
    """Whether no process has this number, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Supervisors of replay engines, stopped afterwards."""
    made: list[Supervisor] = []

    def make(*flags: str, argv: tuple[str, ...] = (), port: int = 0) -> Supervisor:
        fixed = ("--port", str(port)) if port else ()
        command = EngineCommand(argv=argv or engine_argv(*flags, *fixed), cwd=tmp_path, port=port)
        made.append(Supervisor(command, backoff_seconds=FAST, grace_seconds=0.3))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def test_started_engine_becomes_ready(supervise: Callable[..., Supervisor]) -> None:
    """A started engine is alive while it boots and ready once it answers."""
    supervisor = supervise()
    supervisor.start()
    assert supervisor.alive
    state = supervisor.wait_ready(soon())
    assert (state.alive, state.ready, state.generation, state.error) == (True, True, 1, "")
    assert supervisor.address == ("127.0.0.1", state.port)


def test_second_start_changes_nothing(supervise: Callable[..., Supervisor]) -> None:
    """Starting a started supervisor doesn't start a second engine."""
    supervisor = supervise()
    supervisor.start()
    supervisor.start()
    assert supervisor.wait_ready(soon()).generation == 1


def test_killed_engine_is_restarted(supervise: Callable[..., Supervisor]) -> None:
    """An engine killed by SIGKILL is replaced by a new process that becomes ready."""
    supervisor = supervise()
    supervisor.start()
    first = supervisor.wait_ready(soon())
    os.kill(first.pid, signal.SIGKILL)
    assert eventually(lambda: supervisor.generation == 2)
    second = supervisor.wait_ready(soon())
    assert second.pid != first.pid
    assert eventually(lambda: not group_members(first.pid))


def test_death_is_told_to_observers_in_order(supervise: Callable[..., Supervisor]) -> None:
    """Observers see the engine come, go with a reason, and come again."""
    supervisor = supervise()
    states: list[EngineState] = []
    supervisor.subscribe(states.append)
    supervisor.start()
    os.kill(supervisor.wait_ready(soon()).pid, signal.SIGKILL)
    assert eventually(lambda: supervisor.generation == 2)
    supervisor.wait_ready(soon())
    assert any(state.error.startswith("the engine was killed by SIGKILL") for state in states)
    ready = [state.ready for state in states]
    assert [now for now, before in zip(ready[1:], ready, strict=False) if now != before] == [True, False, True]


def test_restart_replaces_the_process(supervise: Callable[..., Supervisor]) -> None:
    """A restart is not ready at once, names its reason, and ends with a new ready process."""
    supervisor = supervise("--ignore-sigterm")
    supervisor.start()
    first = supervisor.wait_ready(soon())
    supervisor.restart("a node can't be interrupted")
    assert not supervisor.ready
    second = supervisor.wait_ready(soon())
    assert (second.generation, second.error) == (2, "")
    assert is_gone(first.pid)


def test_stop_leaves_no_process(supervise: Callable[..., Supervisor]) -> None:
    """After stop no process of the engine's group is left and its leader is reaped."""
    supervisor = supervise("--with-child")
    supervisor.start()
    pid = supervisor.wait_ready(soon()).pid
    supervisor.stop()
    assert is_gone(pid)
    assert eventually(lambda: not group_members(pid))
    assert not supervisor.alive


def test_stop_kills_an_engine_that_ignores_sigterm(supervise: Callable[..., Supervisor]) -> None:
    """An engine that ignores SIGTERM gets SIGKILL after the grace."""
    supervisor = supervise("--ignore-sigterm")
    supervisor.start()
    pid = supervisor.wait_ready(soon()).pid
    supervisor.stop()
    assert is_gone(pid)


def test_stop_right_after_start(supervise: Callable[..., Supervisor]) -> None:
    """Stopping a supervisor whose engine is just being started leaves nothing behind."""
    supervisor = supervise("--ignore-sigterm")
    states: list[EngineState] = []
    supervisor.subscribe(states.append)
    supervisor.start()
    supervisor.stop()
    assert all(eventually(lambda pid=state.pid: not group_members(pid)) for state in states if state.pid)


def test_group_of_a_dead_leader_is_killed(supervise: Callable[..., Supervisor]) -> None:
    """When only a wrapper dies, the engine it had started dies too and frees its port."""
    supervisor = supervise("--with-child", port=free_port())
    supervisor.start()
    first = supervisor.wait_ready(soon())
    os.kill(first.pid, signal.SIGKILL)
    assert eventually(lambda: supervisor.generation >= 2)
    assert supervisor.wait_ready(soon()).port == first.port
    assert eventually(lambda: not group_members(first.pid))


@pytest.mark.parametrize("flags", [(), ("--with-child",), ("--ignore-sigterm",)])
def test_killed_parent_leaves_no_engine(flags: tuple[str, ...], tmp_path: Path) -> None:
    """When the supervising process is killed by SIGKILL, its engine and what that had started die."""
    program = """
import sys, time
from pathlib import Path
from function.engine.command import EngineCommand
from function.engine.supervisor import Supervisor
supervisor = Supervisor(EngineCommand(argv=tuple(sys.argv[1:]), cwd=Path()))
supervisor.start()
print(supervisor.wait_ready(time.monotonic() + 20).pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, *engine_argv(*flags)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        engine = int(parent.stdout.readline())
        assert group_members(engine)
        parent.kill()
    assert eventually(lambda: not group_members(engine))


def test_stranger_on_the_port_is_not_the_engine(supervise: Callable[..., Supervisor]) -> None:
    """While a stranger holds the port, even one that answers as an engine does, the engine is never ready."""
    with serving(ReplayEngine()) as stranger:
        supervisor = supervise(port=stranger.port)
        supervisor.start()
        with pytest.raises(EngineNotReadyError, match=f"port {stranger.port} can't be used"):
            supervisor.wait_ready(soon())
        assert not stranger.seen
        assert supervisor.generation == 0
    assert eventually(lambda: supervisor.ready)


def test_engine_that_ends_at_once_backs_off(supervise: Callable[..., Supervisor]) -> None:
    """An engine that ends at once is retried, and waiting for it fails soon with its last line."""
    supervisor = supervise(argv=(sys.executable, "-c", "import sys; sys.exit('no such GPU')"))
    supervisor.start()
    with pytest.raises(EngineNotReadyError, match=r"the engine ended with status 1: no such GPU$"):
        supervisor.wait_ready(soon())
    generation = supervisor.generation
    assert eventually(lambda: supervisor.generation > generation)


def test_an_engine_that_keeps_failing_is_told_without_a_wait(supervise: Callable[..., Supervisor]) -> None:
    """One that boots is waited for, one that answers is there; one that has ended several times is neither."""
    good, bad = supervise(), supervise(argv=("false",))
    good.refuse_when_failing()
    for supervisor in (good, bad):
        supervisor.start()
        with suppress(EngineNotReadyError):
            supervisor.wait_ready(soon())
    good.refuse_when_failing()
    with pytest.raises(EngineNotReadyError, match="ended with status 1"):
        bad.refuse_when_failing()


def test_engine_counts_as_alive_until_its_start_budget_is_used_up(tmp_path: Path) -> None:
    """It stays alive through the pauses before, is still started again after, and is alive once it answers."""
    program = f"from pathlib import Path; import sys; Path({str(tmp_path / 'good')!r}).exists() or sys.exit('bad')"
    argv = ("sh", "-c", f'"{sys.executable}" -c "$0" && exec "{sys.executable}" {replay.__file__} "$@"', program)
    states: list[EngineState] = []
    supervisor = Supervisor(EngineCommand(argv=argv, cwd=tmp_path), start_budget=3, backoff_seconds=FAST)
    supervisor.subscribe(states.append)
    supervisor.start()
    try:
        assert eventually(lambda: supervisor.generation == 5)
        assert {state.generation for state in states[1:] if state.alive} == {0, 1, 2, 3}
        assert not supervisor.alive
        (tmp_path / "good").touch()
        assert eventually(lambda: supervisor.ready)
        assert supervisor.alive
    finally:
        supervisor.stop()


def test_engine_without_a_start_budget_is_always_alive(tmp_path: Path) -> None:
    """Whoever wants the engine restarted for ever gets that."""
    command = EngineCommand(argv=("false",), cwd=tmp_path)
    supervisor = Supervisor(command, start_budget=None, backoff_seconds=FAST)
    supervisor.start()
    assert eventually(lambda: supervisor.generation == 7)
    assert supervisor.alive
    supervisor.stop()


def test_engine_that_never_answers_is_killed_and_started_again(tmp_path: Path) -> None:
    """A boot that hangs ends at its limit, and the error says so."""
    command = EngineCommand(argv=(sys.executable, "-c", "import time; time.sleep(60)"), cwd=tmp_path)
    supervisor = Supervisor(command, boot_seconds=0.05, backoff_seconds=FAST)
    supervisor.start()
    assert eventually(lambda: supervisor.generation == 2)
    assert "did not answer within 0 s" in supervisor.last_error
    supervisor.stop()


def test_missing_program_is_named(supervise: Callable[..., Supervisor]) -> None:
    """A program that isn't there is named in the error."""
    supervisor = supervise(argv=("no-such-program",))
    supervisor.start()
    with pytest.raises(EngineNotReadyError, match="can't start 'no-such-program': No such file"):
        supervisor.wait_ready(soon())


def test_missing_directory_is_named(tmp_path: Path) -> None:
    """A COMFY_HOME that isn't there is named in the error."""
    supervisor = Supervisor(EngineCommand(argv=("true",), cwd=tmp_path / "nowhere"), backoff_seconds=FAST)
    supervisor.start()
    with pytest.raises(EngineNotReadyError, match="nowhere"):
        supervisor.wait_ready(soon())
    supervisor.stop()


def test_wait_ends_at_the_deadline(supervise: Callable[..., Supervisor]) -> None:
    """Waiting for an engine that boots for ever ends at the deadline."""
    supervisor = supervise(argv=(sys.executable, "-c", "import time; time.sleep(60)"))
    supervisor.start()
    with pytest.raises(EngineNotReadyError, match="still starting"):
        supervisor.wait_ready(time.monotonic() + 0.05)


def test_wait_ends_when_stopped(supervise: Callable[..., Supervisor]) -> None:
    """Whoever waits for the engine is told when it is stopped instead."""
    supervisor = supervise(argv=(sys.executable, "-c", "import time; time.sleep(60)"))
    supervisor.start()
    stopper = threading.Timer(0.05, supervisor.stop)
    stopper.start()
    with pytest.raises(EngineNotReadyError):
        supervisor.wait_ready(soon())
    stopper.join()


def test_lines_reach_the_log(supervise: Callable[..., Supervisor], caplog: pytest.LogCaptureFixture) -> None:
    """What the engine writes is logged line by line, capped, a progress bar as its last state."""
    caplog.set_level(logging.INFO, logger="comfyfn.engine")
    program = r"import sys, time; print('a\rb\rc'); print('x' * 5000); print('end', file=sys.stderr); time.sleep(60)"
    supervisor = supervise(argv=(sys.executable, "-c", program))
    supervisor.start()
    assert eventually(lambda: "end" in caplog.messages)
    assert caplog.messages[:2] == ["c", "x" * 2000]


def test_lines_are_marked_with_the_job_they_were_written_for(
    supervise: Callable[..., Supervisor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before and after the job they carry no mark."""
    caplog.set_level(logging.INFO, logger="comfyfn.engine")
    program = """
import time
from pathlib import Path
for word in ("before", "during", "after"):
    while not Path(word).exists():
        time.sleep(0.01)
    print(word)
"""
    supervisor = supervise(argv=(sys.executable, "-c", program))
    supervisor.start()

    def written(word: str) -> logging.LogRecord:
        (tmp_path / word).touch()
        assert eventually(lambda: word in caplog.messages)
        return next(record for record in caplog.records if record.getMessage() == word)

    marks = [getattr(written("before"), "job_id", "")]
    with supervisor.working_for("f" * 32):
        marks.append(getattr(written("during"), "job_id", ""))
    marks.append(getattr(written("after"), "job_id", ""))
    assert marks == ["", "f" * 32, ""]


def test_ready_is_noticed_soon(supervise: Callable[..., Supervisor], caplog: pytest.LogCaptureFixture) -> None:
    """An engine that listens is found ready within 50 ms (and 200 ms for a busy machine)."""
    caplog.set_level(logging.INFO, logger="comfyfn.engine")
    supervisor = supervise()
    supervisor.start()
    supervisor.wait_ready(soon())
    assert eventually(lambda: "listening" in caplog.text)
    times = {record.getMessage().split()[0]: record.created for record in caplog.records}
    assert times["engine"] - times["listening"] < 0.05 + 0.2

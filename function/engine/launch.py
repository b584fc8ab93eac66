"""Start a command so that neither it nor anything it starts outlives the process that asked for it.

    python -I -S launch.py PARENT_PID COMMAND...

A program of its own, run by path: standard library only, nothing of the project. The kernel kills the command when
its parent dies (prctl PR_SET_PDEATHSIG, which survives exec), even by SIGKILL. That reaches the command alone; a
wrapper such as `comfy launch` has children, so a guard in the same process group waits for the same death and kills
the group. A preexec_fn would do without this program, but runs Python in a forked copy of a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9  # importing signal would take longer than everything else here
_NOT_FOUND = 127


def main(parent_pid: int, command: list[str]) -> int:
    """Become the command; returns only if that fails."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    parent = _open_process(parent_pid)
    if os.getppid() != parent_pid:  # it died before the kernel knew of us
        return 1
    if parent is not None and os.fork() == 0:
        _guard(parent)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a Python engine's lines reach the log when they are written
    try:
        os.execvp(command[0], command)  # noqa: S606  (without a shell is the point)
    except OSError as error:
        print(f"can't start {command[0]!r}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201  (read by the supervisor)
    return _NOT_FOUND


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone, or a sandboxed kernel without pidfd: then only PDEATHSIG protects
        return None


def _guard(parent: int) -> None:
    """Wait until the parent is dead, then kill the whole group, this process included."""
    import signal  # noqa: PLC0415  (only here, where nobody waits)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the group is asked to stop by SIGTERM; the guard stays to the end
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # else the engine's log would not end with the engine
        os.dup2(nowhere, stream)
    select.select([parent], [], [])
    os.killpg(0, _SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

"""Processes that tests start, find and end, by pid."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(__file__).parents[2]


def run_to_end(
    *command: str, cwd: Path, timeout_seconds: float = 170, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that finds this project's packages, to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(_ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def child_pids(pid: int) -> list[int]:
    """Pids of the direct children of a process, by the kernel's own list."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended has none
            children += [int(child) for child in (task / "children").read_text().split()]
    return children


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], *, what: str, timeout_seconds: float = 30) -> None:
    """Poll until a condition holds; fail the test naming `what` if it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s in vain: {what}"
        time.sleep(0.01)

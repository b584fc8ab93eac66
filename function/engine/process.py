"""One engine process: spawned, probed, its lines forwarded to the log."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

from function.engine.lines import LINE_BYTES, parse_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST = "127.0.0.1"

_log = logging.getLogger("comfyfn.engine")

_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_PROBE_TIMEOUT_SECONDS = 2.0
_OK = 200


def spawn(argv: Sequence[str], *, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session and process group of its own; it dies with the calling thread.

    Raises:
        OSError: The directory isn't there. A missing program is a line of output and status 127.
    """
    launcher = [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid())]
    return subprocess.Popen(  # noqa: S603  (the operator's own command, without a shell)
        [*launcher, *argv],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays unreaped, so that its number stays its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def await_end(pid: int) -> None:
    """Wait until a child has ended; it stays unreaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def group_memory_bytes(group: int) -> int:
    """Memory that the processes of a group hold and the kernel can't take back: anonymous and shared pages.

    Pages of mapped files don't count: loaded weights are such, and the kernel drops them when memory gets short.
    """
    return sum(_memory_bytes(folder, group) for folder in Path("/proc").glob("[0-9]*"))


def _memory_bytes(folder: Path, group: int) -> int:
    try:
        group_of = (folder / "stat").read_text().rpartition(")")[2].split()[2]
        if int(group_of) != group:
            return 0
        lines = (folder / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def describe_status(status: int) -> str:
    """How a process ended, from its return code as `subprocess` gives it."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Output:
    """Forwards a process's lines to the log, in a thread of its own, so that a full pipe never stops the engine.

    Args:
        process: The process; its output is a pipe.
        job_id: Asked at each record: the job that the engine works for, "" if there is none.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, job_id: Callable[[], str]) -> None:
        self._job_id = job_id
        self._last_line = ""
        self._thread = threading.Thread(target=self._forward, args=(process.stdout,), name="engine-output", daemon=True)
        self._thread.start()

    def finish(self) -> str:
        """The last line, once the engine and all that wrote with it are gone."""
        self._thread.join(timeout=1.0)
        return self._last_line

    def _forward(self, stream: IO[bytes]) -> None:
        with stream:
            for line in parse_lines(iter(lambda: stream.readline(LINE_BYTES), b"")):
                self._last_line = line.text.rpartition("\n")[2]
                job_id = self._job_id()
                _log.log(line.level, "%s", line.text, extra={"job_id": job_id} if job_id else None)


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free_port(port: int) -> None:
    """Refuse a port where another process listens.

    ComfyUI would notice only after its whole boot, and until then a probe would be answered by the stranger.

    Raises:
        OSError: The port is taken or can't be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} can't be used: {error.strerror}") from error


def answers(port: int) -> bool:
    """Whether an engine answers GET /system_stats on this port with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/system_stats")
        return connection.getresponse().status == _OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

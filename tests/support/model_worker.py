"""A small program that runs jobs over a shared model directory, as one container of several does; tests may kill it.

Started once, it serves a Unix socket: each connection gets a process of its own, forked with everything imported, so
that a test affords many. Commands and answers are lines of JSON. Downloads come from a directory store and are logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from function.errors import ComfyfnError
from function.models.cache import ModelCache
from function.models.checking import crc64nvme_of
from function.models.references import ModelRef
from function.storage.local import LocalStore
from function.telemetry import Metrics
from function.transfer import checksums  # noqa: F401  (imported before the fork)
from function.transfer.fetching import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import TextIOWrapper

    from function.transfer.fetching import Fetch

_CHUNK_BYTES = 4
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.truncate"}


class LoggingFetcher:
    """Fetches in small pieces, and logs each fetch: `begin`, `done`; `double` if somebody is at it or it is there.

    Args:
        store: Where from.
        models: Where files appear.
        log: Appended to by all processes.
        turn: Called before each piece.
    """

    def __init__(self, store: LocalStore, models: Path, log: Path, turn: Callable[[], None]) -> None:
        self._store = store
        self._models = models
        self._log = log
        self._turn = turn

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Bring one file from where it broke off."""
        self._note("begin", wanted)
        mark = self._log.with_name(f"{wanted.etag}.{wanted.key.replace('/', '-')}.pid")
        if self._is_written(mark) or self._is_there(wanted):
            self._note("double", wanted)
        mark.write_text(str(os.getpid()))
        try:
            self._collect(wanted, on_bytes)
        finally:
            mark.unlink()
        self._note("done", wanted)
        return Fetched(crc64nvme_of(wanted.part))

    def _is_written(self, mark: Path) -> bool:
        return mark.exists() and Path(f"/proc/{mark.read_text()}").exists()

    def _is_there(self, wanted: Fetch) -> bool:
        path = self._models / wanted.key
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted.etag

    def _collect(self, wanted: Fetch, on_bytes: Callable[[int], None]) -> None:
        with wanted.part.open("ab") as part:
            on_bytes(part.tell())
            while part.tell() < wanted.size_bytes:
                self._turn()
                piece = self._store.get_range(wanted.key, part.tell(), _CHUNK_BYTES, etag=wanted.etag)
                part.write(piece)
                part.flush()
                on_bytes(len(piece))

    def _note(self, what: str, wanted: Fetch) -> None:
        line = f"{what} {wanted.key} {wanted.etag}\n".encode()
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line)
        os.close(descriptor)


class Worker:
    """One process with its cache.

    Args:
        root: Has the store in `store`, the log in `fetches.log`.
        model_dir: The model directory.
        capacity_bytes: Of the cache.
        revalidate_seconds: Of the cache.
        answers: Where answers go.
    """

    def __init__(
        self, root: Path, model_dir: Path, capacity_bytes: int, revalidate_seconds: float, answers: TextIOWrapper
    ) -> None:
        self._answers = answers
        self._writing = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self._ends: dict[int, threading.Event] = {}
        store = LocalStore(f"file://{root}/store")
        self._cache = ModelCache(
            model_dir,
            store,
            fetcher=LoggingFetcher(store, model_dir, root / "fetches.log", self._turn),
            capacity_bytes=capacity_bytes,
            revalidate_seconds=revalidate_seconds,
            metrics=Metrics(),
            parallel_downloads=1,
        )

    def serve(self, commands: TextIOWrapper) -> None:
        """Obey until the connection ends."""
        self._tell(pid=os.getpid())
        for line in commands:
            command = json.loads(line)
            getattr(self, f"do_{command.pop('do')}")(**command)

    def do_begin(self, job: int, names: list[str], patience_seconds: float) -> None:
        """Run a job in a thread until it is ended."""
        self._ends[job] = threading.Event()
        threading.Thread(target=self._run, args=(job, names, patience_seconds), daemon=True).start()

    def do_end(self, job: int) -> None:
        """End a job."""
        self._ends[job].set()

    def do_hold(self, *, hold: bool) -> None:
        """Stop downloads before their next piece, or let them go on."""
        self._gate.clear() if hold else self._gate.set()

    def do_die_at(self, event: int) -> None:
        """Die by SIGKILL after this many more changes to the disk, right before the next one."""
        left = event

        def count(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if name in _CHANGES or (name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)

    def do_size(self) -> None:
        """Say how large the cache is."""
        self._tell(size_bytes=self._cache.size_bytes)

    def _run(self, job: int, names: list[str], patience_seconds: float) -> None:
        refs = [ModelRef("checkpoints", f"{name}.safetensors", "4", "ckpt_name") for name in names]
        try:
            with self._cache.ensure(refs, deadline=time.monotonic() + patience_seconds) as etags:
                self._tell(job=job, etags={ref.key: etag for ref, etag in etags.items()})
                self._ends[job].wait()
        except ComfyfnError as error:
            self._tell(job=job, error=error.code)
        else:
            self._tell(job=job, ended=True)

    def _turn(self) -> None:
        if not self._gate.is_set():
            self._tell(held=True)
            self._gate.wait()

    def _tell(self, **answer: Any) -> None:
        with self._writing, contextlib.suppress(BrokenPipeError):
            self._answers.write(json.dumps(answer) + "\n")
            self._answers.flush()


def main() -> None:
    """Serve the socket that the command line names."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                with connection.makefile("r") as commands, connection.makefile("w") as answers:
                    first = json.loads(commands.readline())
                    root, model_dir = Path(first.pop("root")), Path(first.pop("model_dir"))
                    Worker(root, model_dir, **first, answers=answers).serve(commands)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()

"""A fetcher that works in a process of its own, so that its CPU time doesn't hold this one's interpreter."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING

from function.errors import StorageUnavailableError
from function.transfer import wire
from function.transfer.fetching import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from function.transfer.fetching import Fetch
    from function.transfer.wire import Message

_log = logging.getLogger("comfyfn.transfer")

_ATTEMPTS = 2
_STOP_SECONDS = 15.0  # a fetch that is told to stop may be waiting for a connection that stalls
_TELL_SECONDS = 0.25  # a caller who wants to end the fetch is asked this often
_COMMAND = (sys.executable, "-m", "function.transfer")


class FetcherProcess:
    """Brings files through a child process, which is started when first needed and again when it has died.

    A fetch in flight when the process dies goes on in the next one, once. The process ends with `stop`, and with this
    process however that ends.

    Args:
        command: What to start.
    """

    def __init__(self, *, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._busy = False
        self._stops = 0

    def start(self) -> None:
        """Start the process unless it runs, so that its imports are over when the first file is wanted."""
        self._living()

    def stop(self) -> None:
        """End the process; fetches in flight fail. It can be started again."""
        with self._lock:
            child, self._child = self._child, None
            self._stops += 1
        if child:
            child.stop()

    @property
    def pid(self) -> int | None:
        """The process's number; None when it was never started or has been stopped."""
        child = self._child
        return child.pid if child else None

    def set_busy(self, busy: bool) -> None:  # noqa: FBT001  (a state, not an option)
        """Say whether the GPU works, so that fetches leave it CPU time and bandwidth."""
        with self._lock:
            self._busy = busy
            if self._child:
                self._child.set_busy(busy)

    @contextmanager
    def making_way(self) -> Iterator[None]:
        """The GPU works until the context closes."""
        self.set_busy(True)
        try:
            yield
        finally:
            self.set_busy(False)

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Bring one file; see `Fetcher`. `on_bytes` is called in this thread.

        Raises:
            StorageUnavailableError: Also when the process died again while it brought the file.
        """
        told, stops = 0, self._stops
        shown = wanted.key.partition("?")[0]  # the query of a URL may hold a secret

        def tell(done_bytes: int) -> None:
            nonlocal told
            count = max(0, done_bytes - told)  # a process that takes over begins with less
            told += count
            on_bytes(count)

        for _ in range(_ATTEMPTS):
            found = self._living().fetch(wanted, tell)
            if found:
                return found
            if stops != self._stops:
                raise StorageUnavailableError(f"the transfer process was stopped while it brought {shown}")
            _log.warning("the transfer process died; %s is taken up again", shown)
        raise StorageUnavailableError(f"the transfer process died again and again while it brought {shown}")

    def _living(self) -> _Child:
        with self._lock:
            if self._child is None or self._child.dead:
                if self._child:
                    self._child.stop()
                self._child = _Child(self._command)
                self._child.set_busy(self._busy)
            return self._child


class _Child:
    """One process from start to end."""

    def __init__(self, command: Sequence[str]) -> None:
        self.dead = False
        self._busy = self._told_busy = False
        self._process = subprocess.Popen(  # noqa: S603  (this interpreter with a module of ours)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, SimpleQueue[Message | None]] = {}
        self._thread = threading.Thread(
            target=self._listen, args=(self._process.stdout,), name="transfer-answers", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the process and wait for it."""
        with suppress(OSError):  # it is gone, and a line to it was lost
            self._process.stdin.close()  # type: ignore[union-attr]  # a pipe
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()

    def set_busy(self, busy: bool) -> None:  # noqa: FBT001  (a state, not an option)
        """See `FetcherProcess.set_busy`; the process is told only while it fetches: each job would wake it twice."""
        with self._lock:
            self._busy = busy
            if self._answers:
                self._tell_busy()

    def _tell_busy(self) -> None:
        if self._told_busy != self._busy:
            self._told_busy = self._busy
            self._write({"busy": self._busy})

    def _send(self, message: Message) -> None:
        with self._lock:
            self._write(message)

    def _write(self, message: Message) -> None:
        """Write a line; one that a dead process doesn't get is answered by its death."""
        with suppress(OSError, ValueError):  # broken or closed
            self._process.stdin.write(wire.encode(message))  # type: ignore[union-attr]  # a pipe
            self._process.stdin.flush()  # type: ignore[union-attr]

    def fetch(self, wanted: Fetch, tell: Callable[[int], None]) -> Fetched | None:
        """One fetch; None when the process died meanwhile."""
        number = next(self._numbers)
        answers: SimpleQueue[Message | None] = SimpleQueue()
        with self._lock:
            if self.dead:
                return None
            self._answers[number] = answers
            self._tell_busy()
            self._write({"fetch": number, "wanted": wire.to_wanted(wanted)})
        try:
            answer = _follow(answers, tell)
        except BaseException:  # the caller's own, or Ctrl-C
            self._end(number, answers)
            raise
        finally:
            self._answers.pop(number, None)
        if answer and "error" in answer:
            raise wire.parse_error(answer["error"])
        return Fetched(answer["crc64nvme"]) if answer else None

    def _end(self, number: int, answers: SimpleQueue[Message | None]) -> None:
        """Make sure that nobody writes to the part any more."""
        self._send({"stop": number})
        try:
            while (answer := answers.get(timeout=_STOP_SECONDS)) and "done_bytes" in answer:
                continue
        except Empty:
            self._process.kill()

    def _listen(self, stream: IO[bytes]) -> None:
        try:
            with stream:
                for line in stream:
                    message = wire.parse(line)
                    if answers := self._answers.get(message["fetch"]):
                        answers.put(message)
        finally:
            with self._lock:
                self.dead = True
                for answers in tuple(self._answers.values()):
                    answers.put(None)


def _follow(answers: SimpleQueue[Message | None], tell: Callable[[int], None]) -> Message | None:
    """Pass on how far it is; the last answer, or None when there won't be one."""
    while True:
        try:
            answer = answers.get(timeout=_TELL_SECONDS)
        except Empty:
            tell(0)  # nothing new
            continue
        if answer is None or "done_bytes" not in answer:
            return answer
        tell(answer["done_bytes"])

"""The parts of one object, brought by several threads."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from function.storage.objects import SlowDownError, TransientStorageError
from function.transfer.checksums import crc64nvme
from function.transfer.disk import write_all
from function.transfer.pace import BUSY, MOST
from function.transfer.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.storage.objects import RangeStream
    from function.storage.origins import Origin
    from function.transfer.journal import Journal
    from function.transfer.pace import Pace

_CHUNK_BYTES = 1024 * 1024
_REPORT_SECONDS = 0.05
_PARTS_IN_FLIGHT = 8  # few connections with long ranges, or many with short ones
_NICENESS = 5  # of a thread while the GPU works: whoever feeds it goes first


@dataclass(slots=True)
class _Range:
    """Parts that lie side by side, fetched by one request as long as nothing breaks.

    Attributes:
        parts: Those that are not finished.
        done_bytes: How much of the first one is written.
        crc: Its CRC so far.
    """

    parts: deque[int]
    done_bytes: int = 0
    crc: int = 0


class Parts:
    """Brings what is missing of one object; used once.

    Args:
        store: Where the object lies.
        key: Its key.
        descriptor: The file, at its full length.
        journal: Which parts are missing, and where finished ones are noted.
        pace: How many connections to use.
        sleep: Waits between attempts.
    """

    def __init__(
        self,
        store: Origin,
        key: str,
        descriptor: int,
        journal: Journal,
        *,
        pace: Pace,
        sleep: Callable[[float], None],
    ) -> None:
        self._store = store
        self._key = key
        self._descriptor = descriptor
        self._journal = journal
        self._header = journal.header
        self._sleep = sleep
        self._pace = pace
        self._most: Callable[[], int] = lambda: MOST
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._missing = deque(part for part in journal.header.parts if part not in journal.crcs)
        self._streams: list[RangeStream] = []
        self._workers = 0
        self._done_bytes = 0
        self._stopped = False
        self._failure: BaseException | None = None

    def bring(self, *, on_bytes: Callable[[int], None], most: Callable[[], int]) -> None:
        """Bring all of them, or raise what kept one from coming.

        Args:
            on_bytes: Told in this thread; if it raises, the threads end, at the latest when their request is answered.
            most: How many connections there may be at this moment.
        """
        self._most = most
        threads: list[threading.Thread] = []
        told = 0
        try:
            while self._unfinished():
                threads += self._grow()
                with self._changed:
                    self._changed.wait(_REPORT_SECONDS)
                done = self._done_bytes
                self._pace.measure(time.monotonic(), done)
                on_bytes(done - told)
                told = done
        finally:
            self._abort()
            for thread in threads:
                thread.join()
        if self._failure:
            raise self._failure
        on_bytes(self._done_bytes - told)

    def _abort(self) -> None:
        """End what is being read: a chunk may take longer than anybody waits."""
        self._stopped = True
        with self._changed:
            for stream in self._streams:
                stream.abort()

    def _unfinished(self) -> bool:
        with self._changed:
            return self._failure is None and bool(self._workers or self._missing)

    def _limit(self) -> int:
        return min(self._pace.limit, self._most())

    def _grow(self) -> list[threading.Thread]:
        """Start the threads for which there is leave and work."""
        with self._changed:
            count = min(self._limit() - self._workers, len(self._missing))
            threads = [threading.Thread(target=self._work, name="transfer") for _ in range(count)]
            self._workers += len(threads)
        for thread in threads:
            thread.start()
        return threads

    def _work(self) -> None:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        try:
            while claimed := self._claim():
                if self._most() == BUSY:
                    _step_back()
                self._bring(claimed, buffer)
        except BaseException as error:  # noqa: BLE001  (raised again by the caller's thread)
            self._failure = self._failure or error
        finally:
            with self._changed:
                self._workers -= 1
                self._changed.notify()

    def _claim(self) -> _Range | None:
        """The next parts; none when all are taken, or when there are more threads than there may be."""
        with self._changed:
            limit = self._limit()
            if not self._missing or self._workers > limit or self._halted():
                return None
            wanted = min(max(1, _PARTS_IN_FLIGHT // limit), -(-len(self._missing) // limit))
            parts = deque([self._missing.popleft()])
            while self._missing and len(parts) < wanted and self._missing[0] == parts[-1] + 1:
                parts.append(self._missing.popleft())
            return _Range(parts)

    def _halted(self) -> bool:
        return self._stopped or self._failure is not None

    def _bring(self, claimed: _Range, buffer: memoryview) -> None:
        patience = Patience(self._sleep)
        while claimed.parts and not self._halted():
            unfinished = len(claimed.parts)
            try:
                self._read(claimed, buffer)
            except TransientStorageError as error:
                if self._halted():
                    return
                if isinstance(error, SlowDownError):
                    self._pace.slow_down(time.monotonic())
                if len(claimed.parts) < unfinished:
                    patience.renew()
                patience.bear(error)

    def _extent(self, claimed: _Range) -> tuple[int, int]:
        """Where the rest of the range begins, and its length."""
        header, parts = self._header, claimed.parts
        start = header.start_of(parts[0]) + claimed.done_bytes
        return start, header.start_of(parts[-1]) + header.length_of(parts[-1]) - start

    def _read(self, claimed: _Range, buffer: memoryview) -> None:
        extent = self._extent(claimed)
        with self._store.open_range(self._key, *extent, etag=self._header.etag) as stream, self._noted(stream):
            self._read_parts(claimed, stream, buffer)

    @contextmanager
    def _noted(self, stream: RangeStream) -> Iterator[None]:
        """Have a stream aborted that is being read when all ends."""
        with self._changed:
            self._streams.append(stream)
        try:
            yield
        finally:
            with self._changed:
                self._streams.remove(stream)

    def _read_parts(self, claimed: _Range, stream: RangeStream, buffer: memoryview) -> None:
        parts = claimed.parts
        while parts and not self._halted():
            self._read_part(claimed, stream, buffer)
            if self._workers > self._limit():
                self._give_back(parts)

    def _read_part(self, claimed: _Range, stream: RangeStream, buffer: memoryview) -> None:
        part = claimed.parts[0]
        start, length = self._header.start_of(part), self._header.length_of(part)
        while claimed.done_bytes < length:
            if self._halted():
                return
            count = stream.readinto(buffer[: length - claimed.done_bytes])
            if not count:
                raise TransientStorageError(f"{self._store.object_url(self._key)}: the answer broke off: try later")
            chunk = buffer[:count]
            claimed.crc = crc64nvme(chunk, claimed.crc)
            with self._writing:  # the kernel lets one at a time write to a file, and the others spin: half as fast
                write_all(self._descriptor, chunk, start + claimed.done_bytes)
            claimed.done_bytes += count
            with self._changed:
                self._done_bytes += count
        self._finish(claimed)

    def _finish(self, claimed: _Range) -> None:
        with self._changed:
            self._journal.finish(claimed.parts.popleft(), claimed.crc)
        claimed.done_bytes = claimed.crc = 0

    def _give_back(self, parts: deque[int]) -> None:
        with self._changed:
            self._missing.extendleft(reversed(parts))
            parts.clear()


def _step_back() -> None:
    """Lower this thread's priority, for as long as it lives: on Linux it is the thread's own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)

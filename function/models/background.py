"""Models that are brought without a job, because somebody asks for them by request."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, DrainingError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.models.cache import ModelCache
    from function.models.references import ModelRef
    from function.telemetry import Progress

_log = logging.getLogger(__name__)


class BackgroundModels:
    """Brings models beside the jobs, whose cache it shares.

    Args:
        cache: Where the files go.
        deadline_seconds: How long one download may take.
        most: Downloads by request at a time. Who waits for one holds a thread of the server, and probes need threads.
    """

    def __init__(self, cache: ModelCache, *, deadline_seconds: float, most: int = 4) -> None:
        self._cache = cache
        self._deadline_seconds = deadline_seconds
        self._most = most
        self._lock = threading.Lock()
        self._active = 0
        self._begun: set[ModelRef] = set()
        self._stopped = threading.Event()

    def download(self, ref: ModelRef) -> int:
        """Bring one model, or its new version, in this thread; its size in bytes.

        Raises:
            QueueFullError: As many downloads run as may.
            ComfyfnError: As `ModelCache.ensure` does.
        """
        with self._counted():
            return self._pull(ref)

    def begin(self, ref: ModelRef) -> None:
        """Begin to bring one model unless that has been begun; returns at once. How it ended is logged.

        Raises:
            QueueFullError: As many downloads run as may.
            DrainingError: The function shuts down.
        """
        with self._lock:
            if ref in self._begun:
                return
            self._count()
            self._begun.add(ref)
        threading.Thread(target=self._run, args=(ref,), name="model-request", daemon=True).start()

    def stop(self) -> None:
        """End every download soon and begin none; what has arrived stays for later."""
        self._stopped.set()

    def _run(self, ref: ModelRef) -> None:
        began = time.monotonic()
        try:
            size_bytes = self._pull(ref)
            _log.info(
                "download: model %s (%d bytes) is here after %.1f s", ref.key, size_bytes, time.monotonic() - began
            )
        except ComfyfnError as error:
            _log.warning("download: %s", error.message)
        finally:
            with self._lock:
                self._begun.discard(ref)
                self._active -= 1

    def _pull(self, ref: ModelRef) -> int:
        return self._cache.pull(ref, deadline=time.monotonic() + self._deadline_seconds, on_progress=self._go_on)

    def _go_on(self, _progress: Progress | None = None) -> None:
        if self._stopped.is_set():
            raise DrainingError("this pod is shutting down")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._count()
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def _count(self) -> None:
        self._go_on()
        if self._active >= self._most:
            raise QueueFullError(f"{self._most} downloads are running in this pod; ask again when one has ended")
        self._active += 1

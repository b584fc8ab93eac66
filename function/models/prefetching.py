"""Prefetch: models of a job that is still waiting for the GPU are brought while another one runs."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, StorageUnavailableError
from function.models.books import read_books
from function.models.downloads import POLL_SECONDS, disk_errors
from function.models.ledger import StartOverError, Wanted
from function.storage.objects import ObjectChangedError, ObjectMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from function.models.directory import ModelDirectory
    from function.models.downloads import Downloads
    from function.models.finding import Finder
    from function.models.ledger import Ledger, Load
    from function.models.references import ModelRef
    from function.models.waiting import WaitingLine

_log = logging.getLogger(__name__)


class Prefetcher:
    """Tries to bring files, in threads of its own, as long as nobody minds.

    Nothing is evicted for a prefetch that a running job uses or that an earlier prefetch is about. As soon as a job,
    perhaps of another process, waits for room, prefetches stop, but for files that some job waits for by now.

    Args:
        directory: The files.
        finder: Finds out what is missing.
        ledger: Reserves room.
        downloads: Brings files.
        line: Jobs that wait for room.
    """

    def __init__(
        self, directory: ModelDirectory, finder: Finder, ledger: Ledger, downloads: Downloads, line: WaitingLine
    ) -> None:
        self._directory = directory
        self._finder = finder
        self._ledger = ledger
        self._downloads = downloads
        self._line = line
        self._expected: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()

    def start(self, refs: Iterable[ModelRef]) -> None:
        """Begin to bring what of this is missing and fits; returns at once."""
        refs = tuple(refs)
        if self._directory.read_only or self._stopped.is_set() or not refs:
            return
        self._expected |= {ref.key for ref in refs}
        thread = threading.Thread(target=self._try, args=(refs,), name="model-prefetch", daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def preload(self, ref: ModelRef) -> None:
        """Bring a file in this thread if it is missing and fits without evicting any file in place.

        Raises:
            ModelMissingError, InputRefusedError, StorageUnavailableError: As `Finder.find` does, or it did not arrive.
        """
        try:
            with disk_errors(self._directory.root):
                self._bring((ref,), evict=False)
        except (StartOverError, ObjectChangedError, ObjectMissingError) as error:
            raise StorageUnavailableError(f"model {ref.key} was replaced or removed meanwhile") from error

    def forget(self, refs: Iterable[ModelRef]) -> None:
        """A job has come for these files: from now on its pins keep them."""
        if self._expected:
            self._expected -= {ref.key for ref in refs}

    def stop(self) -> None:
        """End all prefetches; what has arrived stays for later."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _try(self, refs: tuple[ModelRef, ...]) -> None:
        try:
            with disk_errors(self._directory.root):
                self._bring(refs, evict=True)
        except ComfyfnError as error:
            _log.info("prefetch: %s", error)
        except (StartOverError, ObjectChangedError, ObjectMissingError) as error:
            _log.info("prefetch: model %s was replaced or removed meanwhile", error)

    def _bring(self, refs: tuple[ModelRef, ...], *, evict: bool) -> None:
        wanted = [item for item in self._finder.find(refs).values() if isinstance(item, Wanted)]
        if not wanted:
            return
        with self._directory.locked():
            if self._line.waiting():
                return
            spare = self._expected if evict else read_books(self._directory).present.keys()
            lease = self._ledger.take_unpinned(wanted, spare=spare)
        try:
            self._downloads.run(lease, deadline=math.inf, goes_on=self._patience())
        finally:
            lease.unlock()

    def _patience(self) -> Callable[[Load], bool]:
        """Whether a file is still to be brought; looks at the queue now and then only."""
        looked_at = -math.inf

        def goes_on(load: Load) -> bool:
            nonlocal looked_at
            if self._stopped.is_set():
                return False
            if time.monotonic() - looked_at < POLL_SECONDS:
                return True
            looked_at = time.monotonic()
            return self._line.empty or self._is_awaited(load)

        return goes_on

    def _is_awaited(self, load: Load) -> bool:
        with self._directory.locked():
            if not self._line.waiting():
                return True
            lock = self._directory.seize(load.record.key)  # whoever waits for the file has it pinned
            if lock:
                lock.release()
            return lock is None

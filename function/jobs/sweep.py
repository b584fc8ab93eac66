"""What any pod may do for forsaken jobs: dispatch them again, see off those that have ended, delete old ones."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, StorageUnavailableError
from function.jobs.holders import FORSAKEN, HELD_SECONDS
from function.jobs.manifest import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from function.jobs.dispatch import Dispatcher
    from function.jobs.records import JobRecords

_log = logging.getLogger("comfyfn.jobs")


class Sweep:
    """Looks through the open jobs, on request and from `start` to `stop` at intervals too.

    Two pods that sweep at the same time may dispatch a job twice; its claim gives it to one all the same.

    Args:
        records: The jobs.
        dispatcher: Sends jobs to who runs them.
        on_ended: Called with the id of an open job that has ended.
        chores: What else is to be done at each sweep.
        retention: How long jobs are kept; None: for ever.
        interval_seconds: Time between two sweeps.
        clock: The time of day, for retention and for what a broker was given time for.
    """

    def __init__(
        self,
        records: JobRecords,
        dispatcher: Dispatcher,
        *,
        on_ended: Callable[[str], None],
        chores: tuple[Callable[[], None], ...] = (),
        retention: timedelta | None = None,
        interval_seconds: float = HELD_SECONDS,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._records = records
        self._dispatcher = dispatcher
        self._on_ended = on_ended
        self._chores = chores
        self._retention = retention
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._stopped = threading.Event()
        self._running = threading.Lock()
        self._thread = threading.Thread(target=self._keep_sweeping, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin to sweep at intervals."""
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more."""
        self._stopped.set()

    def run(self) -> None:
        """Sweep once; returns at once if a sweep is going on.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        if not self._running.acquire(blocking=False):
            return
        try:
            if forsaken := self._forsaken():
                for job_id in forsaken:
                    self._look_after(job_id)
                self._dispatcher.tell()
            for chore in self._chores:
                chore()
            if self._retention and (count := self._records.expire(self._clock() - self._retention)):
                _log.info("%d jobs have been deleted after their retention", count)
        finally:
            self._running.release()

    def _forsaken(self) -> list[str]:
        """Open jobs that nobody sees through."""
        listing = self._records.open_jobs()
        old = (info.key for info in listing.objects if listing.taken_at - info.modified_at > FORSAKEN)
        return self._dispatcher.free([key.rpartition("/")[2] for key in old])

    def _look_after(self, job_id: str) -> None:
        try:
            self._see_to(job_id)
        except StorageUnavailableError:
            raise
        except ComfyfnError as error:  # of this job: the others are seen to all the same
            _log.warning("sweep: job %s: %s", job_id, error.message)

    def _see_to(self, job_id: str) -> None:
        state = self._records.state(job_id)
        if state.created_at is None:  # recorded no further than that, or expired
            self._records.close(job_id)
        elif state.finished:
            self._on_ended(job_id)
        elif not state.live_attempt(self._records.lease_seconds) and self._is_due(job_id):
            self._dispatcher.dispatch(job_id)

    def _is_due(self, job_id: str) -> bool:
        not_before = self._records.not_before(job_id)
        return not_before is None or not_before <= self._clock()

    def _keep_sweeping(self) -> None:
        while True:
            try:
                self.run()
            except ComfyfnError as error:
                _log.warning("sweep: %s", error.message)
            if self._stopped.wait(self._interval_seconds):
                return

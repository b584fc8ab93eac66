"""Sends webhooks: from a job's end until its receiver has taken it or it is given up, whichever pods that takes."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from function.errors import ComfyfnError, JobMissingError
from function.jobs.manifest import utc_now
from function.webhooks.records import delivery_id, delivery_of, split_delivery
from function.webhooks.schedule import Schedule
from function.webhooks.sending import Answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from function.job import Job, JobResult
    from function.jobs.records import JobRecords
    from function.webhooks.letters import Letter
    from function.webhooks.records import WebhookRecords
    from function.webhooks.schedule import WebhookState
    from function.webhooks.signing import Message

_log = logging.getLogger("comfyfn.webhooks")

TRY_SECONDS = 15.0
"""From before a try is claimed to its answer; the shortest pause is longer."""

_AT_ONCE = 32
_LAST_UNANSWERED = Answer(0, "the last try was cut off before its answer")


class Send(Protocol):
    """Sends one request; see `sending.Sender.post`."""

    def __call__(self, url: str, message: Message, *, until: float) -> Answer:
        """Send it, and say what became of it."""
        ...


class Webhooks:
    """Sees webhooks to their receivers, several at once; what it knows is in storage.

    Args:
        jobs: Records of jobs.
        records: Records of their webhooks.
        send: Sends one request.
        count: Called with the outcome of each try: `delivered`, `failed` (there will be another) or `dead`.
        schedule: When to try again.
        write: What is sent of a job's end, and to whom; the same each time.
        clock: The time of day.
    """

    def __init__(
        self,
        jobs: JobRecords,
        records: WebhookRecords,
        *,
        send: Send,
        count: Callable[[str], None],
        write: Callable[[Job, JobResult], list[Letter]],
        schedule: Schedule | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._jobs = jobs
        self._records = records
        self._send = send
        self._count = count
        self._schedule = schedule or Schedule()
        self._write = write
        self._clock = clock
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._stopped = False

    def stop(self) -> None:
        """Begin nothing more; a try that is under way goes on to its answer."""
        with self._lock:
            self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def see_off(self, job_id: str) -> None:
        """Close a job that has ended, and send its webhooks if it has any; doing it again changes nothing."""
        with suppress(JobMissingError):  # it expires just now
            for number in range(len(self._letters(job_id))):
                self._begin(self._records.plan(delivery_id(job_id, number)))
        self._jobs.close(job_id)

    def _letters(self, job_id: str) -> list[Letter]:
        job = self._jobs.load(job_id)
        if not job.webhooks:
            return []
        result = self._jobs.result(job_id)
        if result is None:
            raise JobMissingError(f"job {job_id} has no result any more")
        return self._write(job, result)

    def sweep(self) -> None:
        """Begin every try whose time has come.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        for key in self._records.due(self._clock()):
            self._begin(key)

    def _begin(self, key: str) -> None:
        with self._lock:
            if not self._stopped and key not in self._busy:
                self._busy.add(key)
                self._pool.submit(self._see_to, key)

    def _see_to(self, key: str) -> None:
        try:
            self._look_after(key, self._records.look(delivery_of(key)))
        except JobMissingError:  # it has expired
            self._records.forget(key)
        except ComfyfnError as error:  # of storage: the note is still there
            _log.warning("webhook of job %s: %s", delivery_of(key), error.message)
        finally:
            self._busy.discard(key)

    def _look_after(self, key: str, state: WebhookState) -> None:
        due_at = self._schedule.due_at(state)
        if state.over:
            self._records.forget(key)
        elif state.taken_at < due_at:
            self._records.postpone(key, due_at)
        elif state.tries >= self._schedule.tries:
            self._bury(key, state.tries, _LAST_UNANSWERED)
        else:
            self._try(key, state.tries + 1)

    def _try(self, key: str, number: int) -> None:
        """Make one try, unless another pod makes it."""
        job_id, place = split_delivery(delivery_of(key))
        letter = self._letters(job_id)[place]
        message = letter.message()
        until = time.monotonic() + TRY_SECONDS
        if self._records.claim(delivery_of(key), number):
            self._settle(key, number, self._send(letter.url, message, until=until))

    def _settle(self, key: str, number: int, answer: Answer) -> None:
        delivery = delivery_of(key)
        if answer.delivered:
            self._records.deliver(delivery, answer.status)
            self._records.forget(key)
            self._count("delivered")
        elif answer.final or number >= self._schedule.tries:
            self._bury(key, number, answer)
        else:
            due_at = self._schedule.due_at(self._records.look(delivery))
            self._records.postpone(key, due_at)
            self._count("failed")
            _log.info("webhook of job %s: %s; it is tried again at %s", delivery, answer.says, due_at.isoformat())

    def _bury(self, key: str, tries: int, answer: Answer) -> None:
        delivery = delivery_of(key)
        self._records.bury(delivery, status=answer.status, says=answer.says, tries=tries)
        self._records.forget(key)
        self._count("dead")
        _log.warning("webhook of job %s is given up: %s; `comfyfn webhooks retry` tries again", delivery, answer.says)

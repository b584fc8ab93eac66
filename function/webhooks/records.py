"""The records of webhooks; what each key means stands in the package's docstring."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from function.errors import JobMissingError
from function.job import JOB_ID
from function.jobs.manifest import parse_record, to_json, to_timestamp, utc_now
from function.jobs.records import DEAD_LETTERS
from function.storage.objects import ObjectMissingError
from function.webhooks.schedule import OVER, WebhookState, parse_webhook_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.storage.objects import ObjectStore

_DUE = "webhooks/due/"
_MAX_RECORD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What became of a webhook that was given up.

    Attributes:
        job_id: The job.
        status: HTTP status of the last answer; 0 if none came.
        says: Why, in one line.
        tries: How many were made.
        at: When it was given up, ISO 8601 in UTC.
    """

    job_id: str
    status: int
    says: str
    tries: int
    at: str


class WebhookRecords:
    """Reads and writes them; holds nothing but the store.

    Args:
        store: Where RESULTS_URL points.
        clock: Dates the records, for people; tries go by the store's clock.
    """

    def __init__(self, store: ObjectStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._clock = clock

    def plan(self, job_id: str) -> str:
        """Note that a webhook has to be sent; the key of that note."""
        return self._note(job_id, datetime.fromtimestamp(0, UTC))

    def postpone(self, key: str, due_at: datetime) -> None:
        """Put another moment in the place of a note's own."""
        if self._note(job_id_of(key), due_at) != key:
            self.forget(key)

    def forget(self, key: str) -> None:
        """Take a note away."""
        self._store.delete(key)

    def due(self, now: datetime) -> list[str]:
        """Keys of the notes whose moment has come, the oldest first; a page of a thousand."""
        keys = [info.key for info in self._store.list_page(_DUE).objects]
        return [key for key in keys if JOB_ID.fullmatch(job_id_of(key)) and key <= f"{_DUE}{_milliseconds(now)}."]

    def look(self, job_id: str) -> WebhookState:
        """How a job's webhook is doing, by one request."""
        return parse_webhook_state(job_id, self._store.list_page(f"jobs/{job_id}/"))

    def claim(self, job_id: str, number: int) -> bool:
        """Take one try; False if another pod has it."""
        claim = {"try": number, "pod": socket.gethostname(), "at": to_timestamp(self._clock())}
        return self._store.create(f"jobs/{job_id}/webhook-{number}.json", to_json(claim))

    def deliver(self, job_id: str, status: int) -> None:
        """Record that the receiver has taken it."""
        self._store.create(_over_key(job_id), to_json({"status": status, "at": to_timestamp(self._clock())}))

    def bury(self, job_id: str, *, status: int, says: str, tries: int) -> None:
        """Record that it is given up, and keep a dead letter."""
        letter = DeadLetter(job_id, status, says, tries, to_timestamp(self._clock()))
        self._store.create(DEAD_LETTERS + job_id, to_json(asdict(letter)))
        self._store.create(_over_key(job_id), to_json(asdict(letter)))

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter, in the order of their jobs' ids."""
        for info in self._store.list_objects(DEAD_LETTERS):
            try:
                data = self._store.get(info.key, max_bytes=_MAX_RECORD_BYTES)
            except ObjectMissingError:  # somebody has it tried again just now
                continue
            yield parse_record(info.key, data, lambda record: DeadLetter(**record))

    def revive(self, job_id: str) -> None:
        """Have a webhook that was given up tried again from the start.

        Raises:
            JobMissingError: There is no dead letter of this job.
        """
        if not any(info.key == DEAD_LETTERS + job_id for info in self._store.list_objects(DEAD_LETTERS + job_id)):
            raise JobMissingError(f"there is no dead letter of job {job_id}")
        for info in self._store.list_objects(f"jobs/{job_id}/webhook-"):
            self._store.delete(info.key)
        self.plan(job_id)
        self._store.delete(DEAD_LETTERS + job_id)

    def _note(self, job_id: str, due_at: datetime) -> str:
        key = f"{_DUE}{_milliseconds(due_at)}-{job_id}"
        self._store.create(key, b"{}")
        return key


def job_id_of(key: str) -> str:
    """The job of a note."""
    return key.rpartition("-")[2]


def _milliseconds(moment: datetime) -> str:
    return f"{int(moment.timestamp() * 1000):013d}"


def _over_key(job_id: str) -> str:
    return f"jobs/{job_id}/{OVER}"

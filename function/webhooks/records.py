"""The records of webhooks; what each key means stands in the package's docstring."""

from __future__ import annotations

import re
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
_DELIVERY = re.compile(rf"{JOB_ID.pattern}(\.[1-9][0-9]{{0,5}})?")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What became of a webhook that was given up.

    Attributes:
        job_id: The job.
        number: Which of its webhooks, counted from 0.
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
    number: int = 0


class WebhookRecords:
    """Reads and writes them; holds nothing but the store.

    Args:
        store: Where RESULTS_URL points.
        clock: Dates the records, for people; tries go by the store's clock.
    """

    def __init__(self, store: ObjectStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._clock = clock

    def plan(self, delivery: str) -> str:
        """Note that a webhook has to be sent; the key of that note."""
        return self._note(delivery, datetime.fromtimestamp(0, UTC))

    def postpone(self, key: str, due_at: datetime) -> None:
        """Put another moment in the place of a note's own."""
        if self._note(delivery_of(key), due_at) != key:
            self.forget(key)

    def forget(self, key: str) -> None:
        """Take a note away."""
        self._store.delete(key)

    def due(self, now: datetime) -> list[str]:
        """Keys of the notes whose moment has come, the oldest first; a page of a thousand."""
        keys = [info.key for info in self._store.list_page(_DUE).objects]
        return [key for key in keys if _DELIVERY.fullmatch(delivery_of(key)) and key <= f"{_DUE}{_milliseconds(now)}."]

    def look(self, delivery: str) -> WebhookState:
        """How a webhook is doing, by one request."""
        return parse_webhook_state(delivery, self._store.list_page(_prefix(delivery)))

    def claim(self, delivery: str, number: int) -> bool:
        """Take one try; False if another pod has it."""
        claim = {"try": number, "pod": socket.gethostname(), "at": to_timestamp(self._clock())}
        return self._store.create(f"{_prefix(delivery)}{number}.json", to_json(claim))

    def deliver(self, delivery: str, status: int) -> None:
        """Record that the receiver has taken it."""
        self._store.create(_over_key(delivery), to_json({"status": status, "at": to_timestamp(self._clock())}))

    def bury(self, delivery: str, *, status: int, says: str, tries: int) -> None:
        """Record that it is given up, and keep a dead letter."""
        job_id, number = split_delivery(delivery)
        letter = DeadLetter(job_id, status, says, tries, to_timestamp(self._clock()), number)
        self._store.create(DEAD_LETTERS + delivery, to_json(asdict(letter)))
        self._store.create(_over_key(delivery), to_json(asdict(letter)))

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter, in the order of their jobs' ids."""
        for info in self._store.list_objects(DEAD_LETTERS):
            try:
                data = self._store.get(info.key, max_bytes=_MAX_RECORD_BYTES)
            except ObjectMissingError:  # somebody has it tried again just now
                continue
            yield parse_record(info.key, data, lambda record: DeadLetter(**record))

    def revive(self, job_id: str) -> None:
        """Have the webhooks of a job that were given up tried again from the start.

        Raises:
            JobMissingError: There is no dead letter of this job.
        """
        found = [info.key.removeprefix(DEAD_LETTERS) for info in self._store.list_objects(DEAD_LETTERS + job_id)]
        dead = [delivery for delivery in found if delivery.partition(".")[0] == job_id]
        if not dead:
            raise JobMissingError(f"there is no dead letter of job {job_id}")
        for delivery in dead:
            for info in self._store.list_objects(_prefix(delivery)):
                self._store.delete(info.key)
            self.plan(delivery)
            self._store.delete(DEAD_LETTERS + delivery)

    def _note(self, delivery: str, due_at: datetime) -> str:
        key = f"{_DUE}{_milliseconds(due_at)}-{delivery}"
        self._store.create(key, b"{}")
        return key


def delivery_id(job_id: str, number: int) -> str:
    """What names one webhook of a job in keys: the first one the job's id alone, others `<job_id>.<number>`."""
    return f"{job_id}.{number}" if number else job_id


def split_delivery(delivery: str) -> tuple[str, int]:
    """The job, and which of its webhooks."""
    job_id, _, number = delivery.partition(".")
    return job_id, int(number or 0)


def delivery_of(key: str) -> str:
    """The webhook that a note is about."""
    return key.rpartition("-")[2]


def _milliseconds(moment: datetime) -> str:
    return f"{int(moment.timestamp() * 1000):013d}"


def _prefix(delivery: str) -> str:
    """What the keys of a webhook's records begin with."""
    job_id, dot, number = delivery.partition(".")
    return f"jobs/{job_id}/webhook{dot}{number}-"


def _over_key(delivery: str) -> str:
    return f"{_prefix(delivery)}{OVER}.json"

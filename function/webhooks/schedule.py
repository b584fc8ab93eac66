"""When a webhook is tried again: derived from a listing of the job's records, pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from function.storage.objects import Listing

OVER = "webhook-over.json"

_TRY = re.compile(r"webhook-([1-9][0-9]{0,5})\.json")
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class WebhookState:
    """What the records of one job say of its webhook.

    Attributes:
        job_id: The job.
        taken_at: When they were listed, by the store's clock.
        over: Whether there is nothing to be done: it was delivered or given up, or the job is gone.
        tries: How many were begun.
        last_try_at: When the last one was begun, by the store's clock; long ago if none was.
    """

    job_id: str
    taken_at: datetime
    over: bool
    tries: int
    last_try_at: datetime


def parse_webhook_state(job_id: str, listing: Listing) -> WebhookState:
    """Read the listing of `jobs/<job_id>/`."""
    times = {info.key.rpartition("/")[2]: info.modified_at for info in listing.objects}
    tries = {int(match[1]): times[match[0]] for name in times if (match := _TRY.fullmatch(name))}
    last = max(tries, default=0)
    return WebhookState(
        job_id=job_id,
        taken_at=listing.taken_at,
        over="job.json" not in times or OVER in times,
        tries=last,
        last_try_at=tries.get(last, _LONG_AGO),
    )


@dataclass(frozen=True, slots=True)
class Schedule:
    """The pauses between tries; there is one try more than pauses.

    By default nine tries over about a day: 30 s, then each time three times as long. Every pause is longer than a try
    may take, so that a try that may still be under way is never overtaken.

    Attributes:
        pauses_seconds: From the beginning of a try to that of the next one, before jitter.
        jitter: By which part a pause is longer or shorter at most.
    """

    pauses_seconds: tuple[float, ...] = tuple(30.0 * 3**number for number in range(8))
    jitter: float = 0.25

    @property
    def tries(self) -> int:
        """How many at most."""
        return len(self.pauses_seconds) + 1

    def due_at(self, state: WebhookState) -> datetime:
        """When the next try may begin; after the last one, when it is over for sure.

        The jitter comes from job and try, so that all pods find the same moment, and different ones for jobs that
        failed together.
        """
        if not state.tries:
            return _LONG_AGO
        pause = self.pauses_seconds[state.tries - 1] if state.tries < self.tries else self.pauses_seconds[0]
        drawn = int.from_bytes(sha256(f"{state.job_id} {state.tries}".encode()).digest()[:4]) / 2**32
        return state.last_try_at + timedelta(seconds=pause * (1 + self.jitter * (2 * drawn - 1)))

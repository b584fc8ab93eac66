"""What the records of one job say: derived from a listing of them, pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from function.storage.objects import Listing, ObjectInfo

RETURNED = "returned"
FAILED = "failed"

_ATTEMPT = re.compile(rf"attempt-([1-9][0-9]{{0,5}})\.(json|beat|{RETURNED}|{FAILED})")
_ROUNDING = timedelta(seconds=1)  # of the store's times, which are full seconds on S3


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim of the job.

    Attributes:
        number: Counted from 1.
        seen_at: Its last sign of life, by the store's clock.
        ended: `returned`, `failed`, or "" while nothing says that it is over.
    """

    number: int
    seen_at: datetime
    ended: str


@dataclass(frozen=True, slots=True)
class JobState:
    """The records of one job at one moment.

    Attributes:
        job_id: The job.
        taken_at: The moment, by the store's clock.
        created_at: When the job was recorded; None: there is no such job.
        finished: Whether there is a manifest.
        cancelled: Whether somebody asked for its end.
        attempts: In order.
    """

    job_id: str
    taken_at: datetime
    created_at: datetime | None
    finished: bool
    cancelled: bool
    attempts: tuple[Attempt, ...]

    @property
    def untouched(self) -> bool:
        """Whether nobody has claimed or cancelled it."""
        return not self.attempts and not self.cancelled

    @property
    def next_attempt(self) -> int:
        """The number of the attempt after the last one."""
        return self.attempts[-1].number + 1 if self.attempts else 1

    @property
    def spent_attempts(self) -> int:
        """Attempts that count: all but those that were handed back."""
        return sum(attempt.ended != RETURNED for attempt in self.attempts)

    def live_attempt(self, lease_seconds: float) -> Attempt | None:
        """The attempt that holds the job: the last one, unless it is over or overdue.

        Its holder gives up by its own clock before `lease_seconds` have passed since it last began to write its beat
        (`lease.Lease`), so nobody else may take the job before the store's clock says so too.
        """
        last = self.attempts[-1] if self.attempts else None
        if last is None or last.ended or self.taken_at - last.seen_at > timedelta(seconds=lease_seconds) + _ROUNDING:
            return None
        return last

    def lease_left_seconds(self, lease_seconds: float) -> int:
        """After how many seconds the job can be taken if its holder is dead; at least 1."""
        live = self.live_attempt(lease_seconds)
        if live is None:
            return 1
        left = timedelta(seconds=lease_seconds) + 2 * _ROUNDING - (self.taken_at - live.seen_at)
        return max(1, int(left.total_seconds()))


def parse_state(job_id: str, listing: Listing) -> JobState:
    """Read the listing of `jobs/<job_id>/`; names that are not ours are left alone."""
    records = {info.key.rpartition("/")[2]: info for info in listing.objects}
    job = records.get("job.json")
    return JobState(
        job_id=job_id,
        taken_at=listing.taken_at,
        created_at=job.modified_at if job else None,
        finished="result.json" in records,
        cancelled="cancel" in records,
        attempts=tuple(_attempts(records.items())),
    )


def _attempts(records: Iterable[tuple[str, ObjectInfo]]) -> Iterable[Attempt]:
    found: dict[int, dict[str, datetime]] = {}
    for name, info in records:
        if match := _ATTEMPT.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = info.modified_at
    for number, times in sorted(found.items()):
        ended = next((kind for kind in (RETURNED, FAILED) if kind in times), "")
        yield Attempt(number, max(times.values()), ended)

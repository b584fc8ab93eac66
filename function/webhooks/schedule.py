"""When a webhook is tried again: derived from a listing of the job's records, pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from function.storage.objects import Listing

OVER = "over"

_RECORD = re.compile(rf"([1-9][0-9]{{0,5}}|{OVER})\.json")
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class WebhookState:
    """What its records say of one webhook.

    Attributes:
        delivery: Which webhook of which job; see `records.delivery_id`.
        taken_at: When they were listed, by the store's clock.
        over: Whether there is nothing to be done: it was delivered or given up.
        tries: How many were begun.
        last_try_at: When the last one was begun, by the store's clock; long ago if none was.
    """

    delivery: str
    taken_at: datetime
    over: bool
    tries: int
    last_try_at: datetime


def parse_webhook_state(delivery: str, listing: Listing) -> WebhookState:
    """Read the listing of a webhook's records, whose names end in the number of a try or in `over`."""
    times: dict[str, datetime] = {}
    for info in listing.objects:
        if match := _RECORD.fullmatch(info.key.rpartition("-")[2]):
            times[match[1]] = info.modified_at
    tries = {int(name): at for name, at in times.items() if name != OVER}
    last = max(tries, default=0)
    return WebhookState(
        delivery=delivery,
        taken_at=listing.taken_at,
        over=OVER in times,
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

        The jitter comes from webhook and try, so that all pods find the same moment, and different ones for jobs that
        failed together.
        """
        if not state.tries:
            return _LONG_AGO
        pause = self.pauses_seconds[state.tries - 1] if state.tries < self.tries else self.pauses_seconds[0]
        drawn = int.from_bytes(sha256(f"{state.delivery} {state.tries}".encode()).digest()[:4]) / 2**32
        return state.last_try_at + timedelta(seconds=pause * (1 + self.jitter * (2 * drawn - 1)))

"""A sender that delivers again, as Knative's brokers do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import urllib3

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.engine import Answer

RETRIED = frozenset({404, 408, 409, 429})
"""Besides 5xx and no answer at all (`SelectiveRetry` in Knative's pkg/kncloudevents/retries.go)."""


def is_retried(status: int) -> bool:
    """Whether a broker delivers again after this answer."""
    return status in RETRIED or status >= 500


def deliver(send: Callable[[], Answer], *, pause_seconds: float = 0.5, attempts: int = 40) -> Answer:
    """Send until the answer is final; the last answer if none is."""
    for attempt in range(attempts):
        try:
            answer = send()
        except urllib3.exceptions.HTTPError:
            if attempt == attempts - 1:
                raise
        else:
            if not is_retried(answer.status):
                break
        time.sleep(pause_seconds)
    return answer

"""One event as the function sees it, whatever mode or protocol brought it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JOB_REQUESTED = "dev.comfyfn.job.requested"
JOB_COMPLETED = "dev.comfyfn.job.completed"
JOB_FAILED = "dev.comfyfn.job.failed"
PING = "dev.knative.sources.ping"


class MalformedEventError(Exception):
    """The request is no event that can be read; the same bytes will never be one.

    The message is one line that names what is wrong and repeats neither data nor header values.
    """


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent. `source` and `id` together are its identity.

    Attributes:
        id: Not empty; as the sender gave it, never made up here.
        source: Not empty; a URI reference.
        type: Not empty.
        subject: "" if absent.
        time: As the sender wrote it, not checked; "" if absent.
        data: The JSON value for JSON content types, otherwise text or bytes; None if there is none.
    """

    id: str
    source: str
    type: str
    subject: str = ""
    time: str = ""
    data: Any = None

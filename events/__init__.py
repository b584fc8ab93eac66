"""CloudEvents and S3 notices: bytes and headers in, triggers out; results in, events out."""

from events.cloudevent import parse_cloudevent, to_structured
from events.event import JOB_COMPLETED, JOB_FAILED, JOB_REQUESTED, Event, MalformedEventError

__all__ = [
    "JOB_COMPLETED",
    "JOB_FAILED",
    "JOB_REQUESTED",
    "Event",
    "MalformedEventError",
    "parse_cloudevent",
    "to_structured",
]

"""CloudEvents and S3 notices: bytes and headers in, triggers out; results in, events out."""

from events.cloudevent import parse_cloudevent, to_structured
from events.delivery import parse_triggers
from events.event import JOB_COMPLETED, JOB_FAILED, JOB_REQUESTED, Event, MalformedEventError
from events.strict import parse_json
from events.triggers import Delivery, JobEnded, JobRequested, ObjectCreated, Tick, Trigger

__all__ = [
    "JOB_COMPLETED",
    "JOB_FAILED",
    "JOB_REQUESTED",
    "Delivery",
    "Event",
    "JobEnded",
    "JobRequested",
    "MalformedEventError",
    "ObjectCreated",
    "Tick",
    "Trigger",
    "parse_cloudevent",
    "parse_json",
    "parse_triggers",
    "to_structured",
]

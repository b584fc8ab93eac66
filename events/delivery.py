"""One request to triggers: CloudEvents in every mode, notices in every dialect, and what they come wrapped in.

A notice comes inside an SNS message inside an SQS message inside a CloudEvent, any of them may be missing, and each may
hold its content as an object, a list or a JSON text. KafkaSource hands out whatever somebody put into the topic. So one
rule serves all depths.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from events.cloudevent import BATCHED, lower_names, media_type, parse_cloudevent, parse_document
from events.event import JOB_COMPLETED, JOB_FAILED, JOB_REQUESTED, PING, Event, MalformedEventError
from events.objects import parse_eventbridge, parse_record
from events.strict import parse_json, required
from events.triggers import Delivery, JobEnded, JobRequested, ObjectCreated, Tick, Trigger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_TRIGGERS = 1000
MAX_DEPTH = 16  # a record in SNS in SQS as for Lambda in Kafka takes 10

# Types whose data has to be a notice: one that can't be read is an error, not somebody else's event.
_NOTICES = re.compile(
    r"com\.amazonaws\.(?:s3[.:]|Object|sns|sqs)|com\.amazon\.(?:s3|sns|sqs)\.|"
    r"dev\.knative\.eventing\.aws-sqs|dev\.knative\.kafka\.event"
)
# Types whose data is the object itself; the sources delete it once it is delivered, so it must not be acknowledged.
_CONTENTS = frozenset({"dev.knative.eventing.aws-s3", "org.apache.camel.event.aws.s3.getObject"})
_SNS_TYPES = ("Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation")
# What holds messages or records: S3 and Lambda (Records), SQS for Lambda (body), SQS's own API (Body), SNS for Lambda.
_WRAPPINGS = ("Records", "body", "Body", "Sns")
_UNKNOWN = "neither a CloudEvent nor a notice of S3, SNS, SQS or EventBridge"


def parse_triggers(headers: Mapping[str, str], body: bytes, *, max_triggers: int = MAX_TRIGGERS) -> Delivery:
    """Read all that a request asks for.

    A message counts as a whole: if one of its records can't be read, none is acted on.

    Args:
        headers: Of the request, in any case; values as WSGI gives them (latin-1).
        body: Of the request.
        max_triggers: Above it the message is refused. Each trigger of a longer one costs a few writes to storage while
            the sender waits; S3 and its queues send 1 to 10.

    Raises:
        MalformedEventError: It is neither a CloudEvent nor a notice of an upload, or one that can't be read.
    """
    fields = lower_names(headers)
    content_type = media_type(fields.get("content-type"))
    if content_type == BATCHED:
        return _delivery(_of_batch(parse_json(body, "the body")), max_triggers=max_triggers)
    if content_type.startswith("application/cloudevents") or any(name.startswith("ce-") for name in fields):
        return _delivery(_of_event(parse_cloudevent(headers, body)), max_triggers=max_triggers, single=True)
    content = parse_json(body, "the body")
    if isinstance(content, dict) and content.get("Type") == "SubscriptionConfirmation":
        return Delivery((), replies=False, unconfirmed_topic=required(content, "TopicArn", what="the message's"))
    single = content_type == "application/json" and isinstance(content, dict) and "specversion" in content
    return _delivery(_of_content(content), max_triggers=max_triggers, single=single)


def _delivery(found: Iterable[Trigger], *, max_triggers: int, single: bool = False) -> Delivery:
    triggers = tuple(islice(found, max_triggers + 1))
    if len(triggers) > max_triggers:
        raise MalformedEventError(f"more than {max_triggers} records in one message: split it")
    return Delivery(triggers, replies=single and len(triggers) == 1)


def _of_batch(documents: object) -> Iterator[Trigger]:
    if not isinstance(documents, list):
        raise MalformedEventError("a batch must be a JSON array of events")
    for document in documents:
        yield from _of_event(parse_document(document))


def _of_event(event: Event, depth: int = 0) -> Iterator[Trigger]:
    if event.type == JOB_REQUESTED:
        yield JobRequested(event.source, event.id, event.data)
    elif event.type in (JOB_COMPLETED, JOB_FAILED):
        yield JobEnded(event.source, event.id, event.data)
    elif event.type == PING:
        yield Tick(event.source, event.id)
    elif event.type in _CONTENTS:
        raise MalformedEventError(f"{event.type} brings an object without its key: use a source of notices (aws.sqs)")
    elif _NOTICES.match(event.type):
        yield from _of_content(event.data, depth)
    else:
        yield from _of_other_event(event, depth)


def _of_other_event(event: Event, depth: int) -> Iterator[Trigger]:
    """EventBridge's input transformers and Knative's overrides may call a notice anything: its data tells.

    A job inside an event of another type (an audit, a copy) is not asked for.
    """
    try:
        yield from [found for found in _of_content(event.data, depth) if isinstance(found, ObjectCreated)]
    except MalformedEventError:
        return


def _of_content(content: Any, depth: int = 0) -> Iterator[Trigger]:  # noqa: ANN401  (whatever the sender wrote)
    if depth > MAX_DEPTH:
        raise MalformedEventError(f"the message is wrapped more than {MAX_DEPTH} times")
    if isinstance(content, (bytes, str)):
        yield from _of_content(parse_json(content, "a message"), depth + 1)
    elif isinstance(content, list):
        for item in content:
            yield from _of_content(item, depth + 1)
    elif isinstance(content, dict):
        yield from _of_object(content, depth + 1)
    else:
        raise MalformedEventError(_UNKNOWN)


def _of_object(content: dict[str, Any], depth: int) -> Iterator[Trigger]:
    if "specversion" in content:
        yield from _of_event(parse_document(content), depth)
    elif content.get("Type") in _SNS_TYPES:
        yield from _of_content(content.get("Message"), depth) if content["Type"] == "Notification" else ()
    elif content.get("Event") == "s3:TestEvent":
        return
    elif "detail-type" in content:
        yield from _some(parse_eventbridge(content))
    elif "s3" in content:
        yield from _some(parse_record(content))
    else:
        yield from _of_content(_wrapped(content), depth)


def _wrapped(content: Mapping[str, Any]) -> Any:  # noqa: ANN401  (whatever the sender wrote)
    for name in _WRAPPINGS:
        if name in content:
            return content[name]
    raise MalformedEventError(_UNKNOWN)


def _some(trigger: Trigger | None) -> Iterator[Trigger]:
    if trigger is not None:
        yield trigger

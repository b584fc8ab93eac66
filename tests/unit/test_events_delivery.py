"""Requests to triggers: modes, wrappings, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from events import Delivery, JobEnded, JobRequested, MalformedEventError, ObjectCreated, Tick, parse_triggers

JSON = {"Content-Type": "application/json"}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}
RECORD: dict[str, Any] = {
    "eventSource": "aws:s3",
    "eventName": "ObjectCreated:Put",
    "s3": {"bucket": {"name": "uploads"}, "object": {"key": "in/a+b.png", "sequencer": "0A", "size": 3}},
}
UPLOAD = ObjectCreated("uploads", "in/a b.png", "", "0A", "", 3, "aws:s3")
NOTICE = "dev.knative.eventing.aws-sqs"
UNKNOWN = r"^neither a CloudEvent nor a notice of S3, SNS, SQS or EventBridge$"


def event(kind: str = "dev.comfyfn.job.requested", **members: Any) -> dict[str, Any]:
    """An event in the JSON format."""
    return {"specversion": "1.0", "id": "7", "source": "/shop", "type": kind} | members


def parse(content: object, headers: dict[str, str] = JSON, **limits: int) -> Delivery:
    """What a request with a JSON body asks for."""
    return parse_triggers(headers, json.dumps(content).encode(), **limits)


@pytest.mark.parametrize(
    ("kind", "trigger"),
    [
        ("dev.comfyfn.job.requested", JobRequested("/shop", "7", {"a": 1})),
        ("dev.comfyfn.job.completed", JobEnded("/shop", "7", {"a": 1})),
        ("dev.comfyfn.job.failed", JobEnded("/shop", "7", {"a": 1})),
        ("dev.knative.sources.ping", Tick("/shop", "7")),
    ],
)
def test_the_type_of_an_event_decides(kind: str, trigger: object) -> None:
    """Each type of event that the function knows becomes its own trigger, in both modes."""
    assert parse(event(kind, data={"a": 1}), STRUCTURED) == Delivery((trigger,), replies=True)
    binary = JSON | {"ce-specversion": "1.0", "CE-Id": "7", "ce-source": "/shop", "Ce-Type": kind}
    assert parse({"a": 1}, binary) == Delivery((trigger,), replies=True)


def test_a_batch_is_answered_empty() -> None:
    """The events of a batch are triggers in order; there is no reply, not even to a batch of one."""
    jobs = [JobRequested("/shop", "7", None), JobRequested("/shop", "8", None)]
    assert parse([event(), event(id="8")], BATCH) == Delivery(tuple(jobs), replies=False)
    assert parse([event()], BATCH) == Delivery((jobs[0],), replies=False)
    assert parse([], BATCH) == Delivery((), replies=False)


@pytest.mark.parametrize("content", [event(), "x", None, {"events": []}])
def test_a_batch_is_an_array(content: object) -> None:
    """A batch that is no array is refused."""
    with pytest.raises(MalformedEventError, match=r"^a batch must be a JSON array of events$"):
        parse(content, BATCH)


def test_a_batch_holds_events_only() -> None:
    """A raw notice inside a batch of events is refused, and the good event beside it does not run either."""
    with pytest.raises(MalformedEventError, match="not a CloudEvent"):
        parse([event(), {"Records": [RECORD]}], BATCH)


@pytest.mark.parametrize(
    ("content", "headers", "replies"),
    [
        (event(NOTICE, data={"Records": [RECORD]}), STRUCTURED, True),
        (event(NOTICE, data={"Records": [RECORD]}), JSON, True),
        (event(NOTICE, data=json.dumps({"Records": [RECORD]})), STRUCTURED, True),
        (event(NOTICE, data=[RECORD]), STRUCTURED, True),
        (event("com.amazonaws.s3.ObjectCreated:Put", data=RECORD), STRUCTURED, True),
        (event("com.example.anything", data={"Records": [RECORD]}), STRUCTURED, True),
        (event("dev.knative.kafka.event", data=event(NOTICE, data=RECORD)), STRUCTURED, True),
        ({"Records": [RECORD]}, JSON, False),
        ({"Records": [RECORD]}, {}, False),
        ([{"Records": [RECORD]}], {"content-type": "text/plain"}, False),
        (RECORD, JSON, False),
        ({"Type": "Notification", "Message": json.dumps(event(NOTICE, data=RECORD))}, {}, False),
    ],
)
def test_only_a_single_event_is_replied_to(content: object, headers: dict[str, str], *, replies: bool) -> None:
    """An upload is found wherever it is wrapped; a reply goes to a CloudEvent, never to a plain request."""
    assert parse(content, headers) == Delivery((UPLOAD,), replies=replies)


def test_several_uploads_in_one_event_are_not_replied_to() -> None:
    """One answer can't be the result of two jobs."""
    assert parse(event(NOTICE, data=[RECORD, RECORD]), STRUCTURED) == Delivery((UPLOAD, UPLOAD), replies=False)


def test_data_in_base64_is_unwrapped() -> None:
    """A Kafka message of bytes is read like one of JSON."""
    data = base64.b64encode(json.dumps(RECORD).encode()).decode()
    assert parse(event("dev.knative.kafka.event", data_base64=data), STRUCTURED).triggers == (UPLOAD,)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"Records": []},
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "uploads"},
        {"Type": "UnsubscribeConfirmation", "Message": "You have chosen", "TopicArn": "arn:aws:sns:::uploads"},
        {"detail-type": "Scheduled Event", "source": "aws.events", "detail": {}},
        {"detail-type": "Object Deleted", "source": "aws.s3", "detail": {}},
        event("com.example.other"),
        event("com.example.other", data="plain text"),
        event("com.example.other", data={"Records": [{"id": 1}]}),
        event("com.example.other", data={"body": "hello"}),
        event("com.example.audit", data=event()),
    ],
)
def test_what_is_not_for_the_function_is_acknowledged(content: object) -> None:
    """Test events, deletes, other services' and other people's events ask for nothing; nor does a job they mention."""
    assert parse(content) == Delivery((), replies=False)


def test_a_subscription_waits_for_its_operator() -> None:
    """A topic that asks to be confirmed is named; its link and its token are not."""
    asked = {
        "Type": "SubscriptionConfirmation",
        "TopicArn": "arn:aws:sns:::uploads",
        "SubscribeURL": "http://169.254.169.254",
    }
    assert parse(asked, {"content-type": "text/plain"}) == Delivery(
        (), replies=False, unconfirmed_topic="arn:aws:sns:::uploads"
    )
    with pytest.raises(MalformedEventError, match="TopicArn is missing"):
        parse({"Type": "SubscriptionConfirmation"})


@pytest.mark.parametrize(
    "content", [None, 7, True, {}, {"a": 1}, [7], {"Records": [{}]}, {"Records": 7}, {"Type": ["Notification"]}]
)
def test_other_json_is_refused(content: object) -> None:
    """A request, or a message of a source of notices, that is nothing known goes to the dead letters."""
    with pytest.raises(MalformedEventError, match=UNKNOWN):
        parse(content)
    with pytest.raises(MalformedEventError, match=UNKNOWN):
        parse(event("dev.knative.kafka.event", data=content), STRUCTURED)


@pytest.mark.parametrize(
    "body", [b"", b"a=1", b"\xff", b"{", '{"Records": []}'.encode("utf-16"), b'"\xed\xa0\x80"', b"[" * 100_000]
)
def test_other_bodies_are_refused(body: bytes) -> None:
    """A plain request has to be JSON in UTF-8 (RFC 8259 section 8.1), without halves of characters."""
    with pytest.raises(MalformedEventError, match=r"^the body is not valid JSON$"):
        parse_triggers({}, body)


def test_a_message_that_is_no_json_is_refused() -> None:
    """SNS and SQS carry any text; a source of notices doesn't."""
    with pytest.raises(MalformedEventError, match=r"^a message is not valid JSON$"):
        parse({"Type": "Notification", "Message": "hello"})


@pytest.mark.parametrize("kind", ["dev.knative.eventing.aws-s3", "org.apache.camel.event.aws.s3.getObject"])
def test_objects_without_their_keys_are_refused(kind: str) -> None:
    """Sources that send the object and then delete it are told so: an acknowledgement would lose it."""
    with pytest.raises(MalformedEventError, match=f"^{kind} brings an object without its key"):
        parse(event(kind, data={"Records": [RECORD]}), STRUCTURED)


def test_a_message_counts_as_a_whole() -> None:
    """One record that can't be read stops the others, whatever their order."""
    for records in ([RECORD, {"s3": {}}], [{"s3": {}}, RECORD]):
        with pytest.raises(MalformedEventError, match="the record's eventName is missing or empty"):
            parse({"Records": records})


def test_the_number_of_triggers_is_limited() -> None:
    """A message of a thousand uploads is read, one more is refused; what is ignored does not count."""
    ignored = RECORD | {"eventName": "ObjectRemoved:Delete"}
    assert len(parse({"Records": [RECORD] * 1000 + [ignored] * 9}).triggers) == 1000
    with pytest.raises(MalformedEventError, match=r"^more than 1000 records in one message: split it$"):
        parse({"Records": [RECORD] * 1001})
    with pytest.raises(MalformedEventError, match="more than 1 records"):
        parse([event(), event()], BATCH, max_triggers=1)


def test_the_depth_of_wrappings_is_limited() -> None:
    """A message in a message in a message ends somewhere, whether it is text, list or object."""
    text: Any = RECORD
    for _ in range(20):
        text = json.dumps(text)
    lists: Any = RECORD
    for _ in range(20):
        lists = [lists]
    objects: Any = RECORD
    for _ in range(150):
        objects = {"body": objects}
    for content in (text, lists, objects, event("dev.knative.kafka.event", data=objects)):
        with pytest.raises(MalformedEventError, match=r"^the message is wrapped more than 16 times$"):
            parse(content)


def test_messages_repeat_nothing() -> None:
    """What the sender wrote, perhaps a secret, appears in no message, nor does a second line."""
    secret = "s3cret\u0085"
    contents: list[Any] = [
        {secret: secret},
        event(secret, id=secret),
        {"Records": [RECORD | {"eventName": secret}]},
        {"Records": [RECORD | {"eventSource": secret}]},
        {"Records": [RECORD | {"s3": {"bucket": {"name": secret}, "object": {"key": secret, "eTag": "1"}}}]},
        {"Type": "Notification", "Message": secret},
        {"Type": "SubscriptionConfirmation", "TopicArn": secret},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": {"object": {"key": secret}}},
    ]
    for content in contents:
        with pytest.raises(MalformedEventError) as caught:
            parse(content, JSON | {"Authorization": secret})
        assert "s3cret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

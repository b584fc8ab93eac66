"""Whatever arrives, it is read or refused; and a key is the same one in every dialect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import Delivery, JobEnded, JobRequested, MalformedEventError, ObjectCreated, Tick, parse_triggers
from tests.support.samples import INDEX, sample

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = [
    "",
    "s3cret",
    "null",
    "\x00",
    "a\nb",
    "%FF",
    "%",
    "%00",
    "a%0Ab",
    "\ud800",
    "../../etc",
    "[]",
    "{}",
    "1e999",
    "é" * 600,
]
WRONG = [None, True, 7, -1, 1.5, [], {}, [[]], {"a": {}}]
TEXTS = st.sampled_from(HOSTILE) | st.text()
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)
NAMES = st.sampled_from(
    ["Records", "body", "Body", "Sns", "s3", "Type", "Message", "specversion", "data", "data_base64"]
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "ce-type", "ce-id", "CE-SOURCE", "ce-specversion", "ce-subject", "x-a"]),
    st.sampled_from(["application/json", "application/cloudevents-batch+json", "application/cloudevents+json", "1.0"])
    | st.text(),
)
KEYS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=250)


def requests() -> st.SearchStrategy[tuple[dict[str, str], bytes]]:
    """The samples as they are published."""
    return st.sampled_from(sorted(INDEX)).map(lambda name: (sample(name).headers, sample(name).body))


def mutate(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The value with something in it replaced, dropped, doubled or added, also inside JSON that is kept as text."""
    if isinstance(value, str) and value[:1] in ("{", "[") and draw(st.booleans()):
        return json.dumps(mutate(json.loads(value), draw))
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: mutate(value[name], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        return [mutate(value[0], draw), *value[1:]]
    if isinstance(value, dict) and draw(st.booleans()):
        kept = dict(list(value.items())[draw(st.integers(0, 2)) :])
        return kept | {draw(NAMES): draw(st.just(value) | VALUES)}
    return draw(st.just([value, value]) | st.just(json.dumps(value)) | VALUES)


def names_in(value: Any) -> set[str]:
    """The names of all members, also inside JSON that is kept as text."""
    if isinstance(value, dict):
        return set(value).union(*(names_in(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(names_in(item) for item in value))
    return names_in(json.loads(value)) if isinstance(value, str) and value[:1] in ("{", "[") else set()


def swap(value: Any, name: str, other: object) -> Any:
    """The value with another one in every member of the name, also inside JSON that is kept as text."""
    if isinstance(value, dict):
        return {key: other if key == name else swap(inner, name, other) for key, inner in value.items()}
    if isinstance(value, list):
        return [swap(item, name, other) for item in value]
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.dumps(swap(json.loads(value), name, other))
    return value


@st.composite
def mutated(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[dict[str, str], bytes]:
    """A sample whose document, bytes or headers are changed."""
    headers, body = draw(requests())
    if draw(st.booleans()):
        headers = {**headers, **draw(HEADERS)}
    content = json.loads(body)
    for _ in range(draw(st.integers(0, 3))):
        content = mutate(content, draw)
    body = json.dumps(content, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 8)) :]
    return headers, body


def check(delivery: Delivery) -> None:
    """What was read keeps its promises."""
    assert delivery.replies <= (len(delivery.triggers) == 1)
    for trigger in delivery.triggers:
        if isinstance(trigger, ObjectCreated):
            texts = (*trigger.identity, trigger.literal_key)
            assert all(trigger.identity)
            assert len(trigger.key.encode()) <= 1024
            assert trigger.size_bytes is None or trigger.size_bytes >= 0
        else:
            assert isinstance(trigger, JobRequested | JobEnded | Tick)
            texts = (trigger.source, trigger.id)
            assert all(texts)
            data = getattr(trigger, "data", None)
            assert isinstance(data, bytes) or json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
        assert not any(ord(char) < 32 for text in texts for char in text)
        assert "".join(texts).encode().decode() == "".join(texts)


def outcome(headers: dict[str, str], body: bytes) -> Delivery | str:
    """What a request asks for, or the message with which it is refused."""
    try:
        return parse_triggers(headers, body)
    except MalformedEventError as error:
        return str(error)


@settings(max_examples=1500, deadline=None)
@given(request=mutated())
def test_a_changed_sample_is_read_or_refused(request: tuple[dict[str, str], bytes]) -> None:
    """It is read, or refused with one line that repeats nothing; there is no third way."""
    result = outcome(*request)
    if isinstance(result, Delivery):
        check(result)
    else:
        assert len(result.splitlines()) == 1
        assert "s3cret" not in result


@pytest.mark.parametrize("name", INDEX)
def test_any_member_may_hold_anything(name: str) -> None:
    """Each member of each sample with each hostile text and each wrong type: read or refused, and whole if read."""
    request = sample(name)
    content = json.loads(request.body)
    for member in sorted(names_in(content)):
        for other in (*HOSTILE, *WRONG):
            result = outcome(request.headers, json.dumps(swap(content, member, other)).encode())
            if isinstance(result, Delivery):
                check(result)
            else:
                assert len(result.splitlines()) == 1
                assert "s3cret" not in result


@settings(max_examples=300, deadline=None)
@given(headers=HEADERS, body=st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_noise_is_read_or_refused(headers: dict[str, str], body: bytes) -> None:
    """So is any other request."""
    result = outcome(headers, body)
    if isinstance(result, Delivery):
        check(result)
    else:
        assert len(result.splitlines()) == 1


@given(key=KEYS)
def test_a_key_is_the_same_in_every_dialect(key: str) -> None:
    """AWS encodes all but slashes, MinIO the slashes too, Ceph and EventBridge nothing: the same object comes out."""
    names = {"aws:s3": quote_plus(key, safe="/"), "minio:s3": quote_plus(key), "ceph:s3": key}
    notices: list[dict[str, Any]] = [
        {
            "eventSource": source,
            "eventName": "s3:ObjectCreated:Put",
            "s3": {"bucket": {"name": "b"}, "object": {"key": sent, "sequencer": "0A"}},
        }
        for source, sent in names.items()
    ]
    detail = {"bucket": {"name": "b"}, "object": {"key": key, "sequencer": "0A"}}
    notices.append({"source": "aws.s3", "detail-type": "Object Created", "detail": detail})
    triggers = parse_triggers({}, json.dumps(notices).encode()).triggers
    assert [trigger.identity for trigger in triggers if isinstance(trigger, ObjectCreated)] == [("b", key, "a")] * 4

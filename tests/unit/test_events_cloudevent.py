"""CloudEvents from and to HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from events import JOB_COMPLETED, JOB_REQUESTED, Event, MalformedEventError, parse_cloudevent, to_structured

BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "7",
    "ce-source": "/shop",
    "ce-type": JOB_REQUESTED,
    "content-type": "application/json",
}
ATTRIBUTES = {"specversion": "1.0", "id": "7", "source": "/shop", "type": JOB_REQUESTED}
STRUCTURED = {"content-type": "application/cloudevents+json"}
DATA = {"workflow": {"1": {"class_type": "EmptyImage"}}}
EVENT = Event(id="7", source="/shop", type=JOB_REQUESTED, data=DATA)


def binary(body: bytes = json.dumps(DATA).encode(), **changed: str) -> Event:
    """Parse a binary event with some headers changed; underscores stand for hyphens."""
    return parse_cloudevent(BINARY | {name.replace("_", "-"): value for name, value in changed.items()}, body)


def structured(**changed: Any) -> Event:
    """Parse a structured event with some members changed."""
    return parse_cloudevent(STRUCTURED, json.dumps(ATTRIBUTES | changed).encode())


def test_binary_mode() -> None:
    """Attributes come from the headers and JSON data from the body."""
    assert binary() == EVENT


def test_header_names_in_any_case() -> None:
    """Header names are compared without case, as HTTP says."""
    headers = {name.title(): value for name, value in BINARY.items()}
    assert parse_cloudevent(headers, json.dumps(DATA).encode()) == EVENT


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON;charset=UTF-8",
        "application/json",
    ],
)
def test_structured_mode(content_type: str) -> None:
    """Attributes and data come from a JSON body, also under the plain JSON type."""
    body = json.dumps(ATTRIBUTES | {"data": DATA}).encode()
    assert parse_cloudevent({"Content-Type": content_type}, body) == EVENT


def test_the_content_type_decides_the_mode() -> None:
    """A structured event may repeat attributes as headers; the body counts."""
    headers = STRUCTURED | {"ce-id": "8", "ce-specversion": "1.0"}
    assert parse_cloudevent(headers, json.dumps(ATTRIBUTES).encode()).id == "7"


def test_optional_attributes() -> None:
    """Subject and time are kept as sent and are empty strings if absent or null."""
    event = structured(subject="cat", time="2026-03-02T09:30:00Z")
    assert (event.subject, event.time) == ("cat", "2026-03-02T09:30:00Z")
    assert (structured(subject=None).subject, binary().time) == ("", "")


@pytest.mark.parametrize("name", ["id", "source", "type"])
@pytest.mark.parametrize("value", ["", None, 7])
def test_structured_attributes_are_required(name: str, value: object) -> None:
    """An empty, null or numeric id, source or type is refused by name."""
    with pytest.raises(MalformedEventError, match=f"attribute {name} "):
        structured(**{name: value})


@pytest.mark.parametrize("name", ["id", "source", "type"])
def test_binary_attributes_are_required(name: str) -> None:
    """A missing or empty header is refused; an id is never made up."""
    headers = {header: value for header, value in BINARY.items() if header != f"ce-{name}"}
    with pytest.raises(MalformedEventError, match=f"attribute {name} is missing or empty"):
        parse_cloudevent(headers, b"{}")
    with pytest.raises(MalformedEventError, match=f"attribute {name} is missing or empty"):
        binary(**{f"ce_{name}": ""})


@pytest.mark.parametrize("version", ["0.3", "2.0", ""])
def test_other_versions_are_refused(version: str) -> None:
    """Only CloudEvents 1.0 is read, in both modes."""
    for parse in (lambda: binary(ce_specversion=version), lambda: structured(specversion=version)):
        with pytest.raises(MalformedEventError, match=r"specversion must be 1\.0"):
            parse()


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        ("Euro%20%E2%82%AC%20%f0%9f%98%80", "Euro € 😀"),
        ("日本.png".encode().decode("latin-1"), "日本.png"),
        ("日本.png", "日本.png"),
        ("caf\xe9", "café"),
        ('"a \\"b\\" c"', 'a "b" c'),
        ("100%", "100%"),
        ("a+b%2Bc", "a+b+c"),
        ("%2525", "%25"),
    ],
)
def test_header_values_are_decoded(header: str, subject: str) -> None:
    """Quotes are undone, then one round of percent-encoding; raw UTF-8 and latin-1 arrive as they were meant."""
    assert binary(ce_subject=header).subject == subject


@pytest.mark.parametrize("header", ["%C0%A0", "%FF"])
def test_invalid_percent_encoding_is_refused(header: str) -> None:
    """Percent-encoded bytes that are not UTF-8 are refused, as the HTTP binding demands."""
    with pytest.raises(MalformedEventError, match="header ce-subject is not percent-encoded UTF-8"):
        binary(ce_subject=header)


@pytest.mark.parametrize("value", ["a%0Ab", "a%00", "%C2%85"])
def test_control_characters_are_refused(value: str) -> None:
    """An attribute can't smuggle a line break into a log or a header."""
    with pytest.raises(MalformedEventError, match="attribute id has a control character"):
        binary(ce_id=value)


def test_half_a_surrogate_pair_is_refused() -> None:
    """Text that has no UTF-8 form is refused in attributes and in data, a whole pair is not."""
    with pytest.raises(MalformedEventError, match="the body is not valid JSON"):
        structured(id="\ud800")
    with pytest.raises(MalformedEventError, match="data is not valid JSON"):
        binary(rb'{"label": "\udc00"}')
    assert binary(rb'{"label": "\ud83d\ude00"}').data == {"label": "😀"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe\xfd",
        b'"\xed\xa0\x80"',
        '"\\ud800"'.encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b"[" * 100_000,
        b"1" * 5_000,
    ],
    ids=["open", "not UTF-8", "surrogate", "UTF-16", "NaN", "infinity", "too large", "too deep", "too many digits"],
)
def test_broken_json_data_is_refused(body: bytes) -> None:
    """A JSON content type promises JSON that can be read and written again."""
    with pytest.raises(MalformedEventError, match=r"^data is not valid JSON$"):
        binary(body)
    with pytest.raises(MalformedEventError, match=r"^the body is not valid JSON$"):
        parse_cloudevent(STRUCTURED, body)


@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b'"specversion"', b"{}", b'{"Records": []}'])
def test_other_json_is_no_event(body: bytes) -> None:
    """JSON without a specversion is no CloudEvent."""
    with pytest.raises(MalformedEventError, match="not a JSON object with a specversion"):
        parse_cloudevent({"Content-Type": "application/json"}, body)


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_other_requests_are_no_events(headers: dict[str, str]) -> None:
    """A request without any sign of a CloudEvent is refused with what is expected."""
    with pytest.raises(MalformedEventError, match=r"^not a CloudEvent: neither ce- headers nor a body of type"):
        parse_cloudevent(headers, b"hello")


def test_batches_are_refused() -> None:
    """A batch is refused with words that say so."""
    with pytest.raises(MalformedEventError, match="a batch of events is not supported"):
        parse_cloudevent({"content-type": "application/cloudevents-batch+json"}, b"[]")


def test_other_formats_are_refused() -> None:
    """A structured event in another format than JSON is refused."""
    with pytest.raises(MalformedEventError, match=r"only application/cloudevents\+json"):
        parse_cloudevent({"content-type": "application/cloudevents+avro"}, b"")


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/vnd.comfyfn+json; charset=utf-8", b'{"a": 1}', {"a": 1}),
        ("text/json", b"[1]", [1]),
        ("text/plain", b"caf\xc3\xa9", "café".encode()),
        ("", b"{}", b"{}"),
        ("application/json", b"", None),
    ],
)
def test_binary_data_follows_its_content_type(content_type: str, body: bytes, data: object) -> None:
    """JSON types are parsed, every other type is kept as bytes, an empty body is no data."""
    assert binary(body, content_type=content_type).data == data


def test_structured_data_is_taken_as_it_is() -> None:
    """A string in `data` stays a string, even if it looks like JSON."""
    assert structured(data='{"a": 1}', datacontenttype="application/json").data == '{"a": 1}'


def test_base64_data_follows_its_content_type() -> None:
    """`data_base64` is decoded, and parsed if its type is JSON."""
    encoded = base64.b64encode(b'{"a": 1}').decode()
    assert structured(data_base64=encoded).data == b'{"a": 1}'
    assert structured(data_base64=encoded, datacontenttype="application/json").data == {"a": 1}


@pytest.mark.parametrize("encoded", ["a", "§§§§", 7, {}])
def test_broken_base64_is_refused(encoded: object) -> None:
    """`data_base64` must be base64."""
    with pytest.raises(MalformedEventError, match="data_base64 is not base64"):
        structured(data_base64=encoded)


def test_two_kinds_of_data_are_refused() -> None:
    """An event has `data` or `data_base64`, not both."""
    with pytest.raises(MalformedEventError, match="exclude each other"):
        structured(data=1, data_base64="MQ==")


def test_messages_repeat_nothing() -> None:
    """What the sender wrote, perhaps a secret, appears in no message, nor does a second line."""
    secret = "s3cret\u0085"
    requests = [
        (BINARY | {"ce-id": secret}, b"{}"),
        (BINARY | {"ce-specversion": secret, "authorization": secret}, b"{}"),
        (BINARY, b'{"password": "s3cret"'),
        (STRUCTURED, json.dumps(ATTRIBUTES | {"id": [secret]}).encode()),
        ({"content-type": f"text/{secret}"}, secret.encode()),
        ({"content-type": f"application/cloudevents+{secret}"}, b""),
    ]
    for headers, body in requests:
        with pytest.raises(MalformedEventError) as caught:
            parse_cloudevent(headers, body)
        assert "s3cret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def write(data: object, subject: str = "cat") -> tuple[dict[str, str], bytes]:
    """A completed event with the data."""
    return to_structured(
        JOB_COMPLETED, id="7", source="/comfyfn", subject=subject, time="2026-03-02T09:30:00.000Z", data=data
    )


def test_duplicates_are_byte_identical() -> None:
    """The order in which data was put together does not show."""
    assert write({"a": {"b": 1, "c": 2}, "d": 3}) == write({"d": 3, "a": {"c": 2, "b": 1}})


def test_what_is_written_can_be_read() -> None:
    """A written event reads as itself, whatever alphabet it uses."""
    headers, body = write({"label": "日本 😀"}, subject="日本")
    assert headers == {"content-type": "application/cloudevents+json"}
    assert parse_cloudevent(headers, body) == Event(
        id="7",
        source="/comfyfn",
        type=JOB_COMPLETED,
        subject="日本",
        time="2026-03-02T09:30:00.000Z",
        data={"label": "日本 😀"},
    )


def test_no_subject_is_left_out() -> None:
    """CloudEvents forbids an empty subject, so it is not written."""
    assert "subject" not in json.loads(write(None, subject="")[1])


def test_only_json_is_written() -> None:
    """NaN is no JSON value; a broker would drop the event."""
    with pytest.raises(ValueError, match="Out of range float"):
        write({"seconds": float("nan")})

"""CloudEvents 1.0 over HTTP: requests to events, events to replies.

Events are written by the SDK and read here: the SDK's reader makes up a missing id (which would defeat the recognition
of duplicates), hands on broken JSON as bytes, leaves header values encoded and parses a structured body three times.
References such as "HTTP 3.1.3.2" are sections of the CloudEvents HTTP binding and JSON format, version 1.0.2.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from cloudevents.conversion import to_structured as sdk_to_structured
from cloudevents.http import CloudEvent

from events.event import Event, MalformedEventError

if TYPE_CHECKING:
    from collections.abc import Mapping

STRUCTURED = "application/cloudevents+json"

_JSON_TYPE = re.compile(r"[^/]+/(?:[^/]+\+)?json")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
# CloudEvents 1.0.2 section 3.1 forbids control characters and lone surrogates in attributes.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_cloudevent(headers: Mapping[str, str], body: bytes) -> Event:
    """Read one event in binary or structured mode.

    A JSON body with a `specversion` under `application/json` counts as structured, because some senders do so.

    Args:
        headers: Of the request, in any case; values as WSGI gives them (latin-1).
        body: Of the request.

    Raises:
        MalformedEventError: It is no CloudEvent 1.0, it is a batch, or its JSON is broken.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    media_type = _media_type(fields.get("content-type", ""))
    if media_type.startswith("application/cloudevents-batch"):
        raise MalformedEventError("a batch of events is not supported: send one event per request")
    if media_type == STRUCTURED:
        return _parse_structured(body)
    if media_type.startswith("application/cloudevents"):
        raise MalformedEventError(f"only {STRUCTURED} is supported in structured mode")
    if any(name.startswith("ce-") for name in fields):
        return _parse_binary(fields, body)
    if media_type == "application/json":
        return _parse_structured(body)
    raise MalformedEventError(f"not a CloudEvent: neither ce- headers nor a body of type {STRUCTURED}")


def to_structured(
    type: str,  # noqa: A002  (CloudEvents' own name)
    *,
    id: str,  # noqa: A002  (CloudEvents' own name)
    source: str,
    subject: str,
    time: str,
    data: Any,  # noqa: ANN401  (any JSON value)
) -> tuple[dict[str, str], bytes]:
    """Write one event in structured mode; equal arguments give equal bytes, so duplicates are byte-identical.

    Args:
        type: For example `JOB_COMPLETED`.
        id: With `source` the identity of the event.
        source: A URI reference.
        subject: "" for none.
        time: RFC 3339.
        data: A JSON value without NaN or infinity; keys are written sorted.

    Returns:
        Headers and body of the request or reply.

    Raises:
        ValueError: NaN or infinity in data.
    """
    attributes = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": type,
        "datacontenttype": "application/json",
        "time": time,
    }
    if subject:
        attributes["subject"] = subject
    # The SDK writes attributes in the order of its own class and data in the order it is given.
    return sdk_to_structured(CloudEvent(attributes, _sorted(data)))


def _sorted(data: Any) -> Any:  # noqa: ANN401  (any JSON value)
    return json.loads(json.dumps(data, sort_keys=True, allow_nan=False))


def _parse_binary(fields: Mapping[str, str], body: bytes) -> Event:
    attributes = {name[3:]: _decode_header(name, value) for name, value in fields.items() if name.startswith("ce-")}
    content_type = _media_type(fields.get("content-type", ""))
    data = _parse_content(content_type, body) if body else None
    return _event(attributes, data)


def _parse_structured(body: bytes) -> Event:
    document = _parse_json(body, "the body")
    if not isinstance(document, dict) or "specversion" not in document:
        raise MalformedEventError("not a CloudEvent: the body is not a JSON object with a specversion")
    return _event(document, _structured_data(document))


def _structured_data(document: Mapping[str, Any]) -> Any:  # noqa: ANN401  (whatever the sender put into the event)
    encoded = document.get("data_base64")
    if encoded is None:
        return document.get("data")
    if "data" in document:
        raise MalformedEventError("data and data_base64 exclude each other")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError) as error:
        raise MalformedEventError("data_base64 is not base64") from error
    return _parse_content(_media_type(document.get("datacontenttype")), content)


def _event(attributes: Mapping[str, Any], data: Any) -> Event:  # noqa: ANN401  (whatever the sender put into the event)
    if _text(attributes, "specversion") != "1.0":
        raise MalformedEventError("specversion must be 1.0")
    return Event(
        id=_required(attributes, "id"),
        source=_required(attributes, "source"),
        type=_required(attributes, "type"),
        subject=_text(attributes, "subject"),
        time=_text(attributes, "time"),
        data=data,
    )


def _required(attributes: Mapping[str, Any], name: str) -> str:
    value = _text(attributes, name)
    if not value:
        raise MalformedEventError(f"attribute {name} is missing or empty")
    return value


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name)
    if value is None:  # JSON 2.2: null means absent
        return ""
    if not isinstance(value, str):
        raise MalformedEventError(f"attribute {name} must be a string")
    if _FORBIDDEN.search(value):
        raise MalformedEventError(f"attribute {name} has a control character or half a surrogate pair")
    return value


def _media_type(content_type: object) -> str:
    return content_type.split(";")[0].strip().lower() if isinstance(content_type, str) else ""


def _decode_header(name: str, value: str) -> str:
    """Undo quoting and one round of percent-encoding (HTTP 3.1.3.2); raw UTF-8, which some senders write, is kept."""
    try:
        text = value.encode("latin-1").decode()
    except UnicodeError:
        text = value
    text = _QUOTED.sub(lambda quoted: re.sub(r"\\(.)", r"\1", quoted[1]), text)
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise MalformedEventError(f"header {name} is not percent-encoded UTF-8") from error


def _parse_content(media_type: str, content: bytes) -> Any:  # noqa: ANN401  (JSON, text or bytes)
    if _JSON_TYPE.fullmatch(media_type):
        return _parse_json(content, "data")
    return content


def _parse_json(content: bytes, what: str) -> Any:  # noqa: ANN401  (any JSON value)
    try:
        value = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
        if _ESCAPED_SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair has no UTF-8 and would fail far from here
    except (ValueError, RecursionError) as error:
        raise MalformedEventError(f"{what} is not valid JSON") from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number beyond the range of a double")
    return value

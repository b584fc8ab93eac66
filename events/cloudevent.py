"""CloudEvents 1.0 over HTTP: requests to events, events to replies.

Events are written by the SDK and read here: the SDK's reader makes up a missing id (which would defeat the recognition
of duplicates), hands on broken JSON as bytes, leaves header values encoded and parses a structured body three times.
References such as "HTTP 3.1.3.2" are sections of the CloudEvents HTTP binding and JSON format, version 1.0.2.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cloudevents.conversion import to_structured as sdk_to_structured
from cloudevents.http import CloudEvent

from events.event import Event, MalformedEventError
from events.strict import parse_json, required, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"

_JSON_TYPE = re.compile(r"[^/]+/(?:[^/]+\+)?json")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def parse_cloudevent(headers: Mapping[str, str], body: bytes) -> Event:
    """Read one event in binary or structured mode.

    A JSON body with a `specversion` under `application/json` counts as structured, because some senders do so.

    Args:
        headers: Of the request, in any case; values as WSGI gives them (latin-1).
        body: Of the request.

    Raises:
        MalformedEventError: It is no CloudEvent 1.0, it is a batch, or its JSON is broken.
    """
    fields = lower_names(headers)
    content_type = media_type(fields.get("content-type"))
    if content_type.startswith("application/cloudevents-batch"):
        raise MalformedEventError("a batch of events is not supported: send one event per request")
    if content_type == STRUCTURED:
        return parse_document(parse_json(body, "the body"))
    if content_type.startswith("application/cloudevents"):
        raise MalformedEventError(f"only {STRUCTURED} is supported in structured mode")
    if any(name.startswith("ce-") for name in fields):
        return _parse_binary(fields, body)
    if content_type == "application/json":
        return parse_document(parse_json(body, "the body"))
    raise MalformedEventError(f"not a CloudEvent: neither ce- headers nor a body of type {STRUCTURED}")


def parse_document(document: object) -> Event:
    """One event in the JSON format: the body in structured mode, an element of a batch, an event inside a message.

    Raises:
        MalformedEventError: It is no CloudEvent 1.0.
    """
    if not isinstance(document, dict) or "specversion" not in document:
        raise MalformedEventError("not a CloudEvent: the body is not a JSON object with a specversion")
    return _event(document, _structured_data(document))


def lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def media_type(content_type: object) -> str:
    """The type without its parameters, in lower case; "" for what is no text."""
    return content_type.split(";")[0].strip().lower() if isinstance(content_type, str) else ""


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
    data = _parse_content(media_type(fields.get("content-type")), body) if body else None
    return _event(attributes, data)


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
    return _parse_content(media_type(document.get("datacontenttype")), content)


def _event(attributes: Mapping[str, Any], data: Any) -> Event:  # noqa: ANN401  (whatever the sender put into the event)
    if text_of(attributes, "specversion", what="attribute") != "1.0":
        raise MalformedEventError("specversion must be 1.0")
    return Event(
        id=required(attributes, "id", what="attribute"),
        source=required(attributes, "source", what="attribute"),
        type=required(attributes, "type", what="attribute"),
        subject=text_of(attributes, "subject", what="attribute"),
        time=text_of(attributes, "time", what="attribute"),
        data=data,
    )


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


def _parse_content(content_type: str, content: bytes) -> Any:  # noqa: ANN401  (JSON, text or bytes)
    if _JSON_TYPE.fullmatch(content_type):
        return parse_json(content, "data")
    return content

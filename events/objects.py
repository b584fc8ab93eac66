"""What S3 servers write about one object: a record of a notification, an event of EventBridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from events.event import MalformedEventError
from events.strict import plain, required, text_of
from events.triggers import ObjectCreated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from events.triggers import Dialect

KEY_LIMIT_BYTES = 1024  # of S3, and of every server that follows it

# MinIO files these under ObjectCreated (internal/event/name.go); the object was there before.
_NO_UPLOADS = frozenset({"PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold"})
_DIALECTS: dict[str, Dialect] = {"aws:s3": "aws:s3", "minio:s3": "minio:s3", "ceph:s3": "ceph:s3"}
# What records and EventBridge call a version and an ETag.
_RECORD = ("versionId", "eTag")
_EVENTBRIDGE = ("version-id", "etag")


def parse_record(record: Mapping[str, Any]) -> ObjectCreated | None:
    """One record of an S3 notification, as AWS, MinIO, Ceph and those who follow them write it.

    AWS and MinIO encode the key like a form (MinIO the slashes too), Ceph doesn't; a server that isn't known is
    believed to follow AWS, and the key as it was written is kept beside.

    Returns:
        None if the record tells of something else than an upload.

    Raises:
        MalformedEventError: It lacks what an upload must have.
    """
    category, _, action = required(record, "eventName", what="the record's").removeprefix("s3:").partition(":")
    if category != "ObjectCreated" or action in _NO_UPLOADS:
        return None
    details = _member(record, "s3")
    sent = required(_member(details, "object"), "key", what="the object's")
    dialect = _DIALECTS.get(text_of(record, "eventSource", what="the record's"), "other")
    key = sent if dialect == "ceph:s3" else _decode(sent)
    literal_key = sent if dialect == "other" and key != sent else ""
    return _created(details, _RECORD, key=key, dialect=dialect, literal_key=literal_key)


def parse_eventbridge(event: Mapping[str, Any]) -> ObjectCreated | None:
    """One event of Amazon EventBridge; its keys are not encoded.

    Returns:
        None if it comes from elsewhere than S3 or tells of something else than an upload.

    Raises:
        MalformedEventError: It lacks what an upload must have.
    """
    if event.get("source") != "aws.s3" or event.get("detail-type") != "Object Created":
        return None
    detail = _member(event, "detail")
    key = required(_member(detail, "object"), "key", what="the object's")
    return _created(detail, _EVENTBRIDGE, key=key, dialect="eventbridge")


def _created(
    details: Mapping[str, Any], names: tuple[str, str], *, key: str, dialect: Dialect, literal_key: str = ""
) -> ObjectCreated:
    entry = _member(details, "object")
    version_id, etag = (text_of(entry, name, what="the object's") for name in names)
    created = ObjectCreated(
        bucket=required(_member(details, "bucket"), "name", what="the bucket's"),
        key=_checked(key),
        version_id="" if version_id == "null" else version_id,  # all uploads without versioning are called null
        sequencer=text_of(entry, "sequencer", what="the object's"),
        etag=etag.strip('"'),
        size_bytes=_size(entry.get("size")),
        dialect=dialect,
        literal_key=literal_key,
    )
    if not created.identity[2]:
        raise MalformedEventError("the object has neither version id nor sequencer nor ETag: its uploads look alike")
    return created


def _member(members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = members.get(name)
    if not isinstance(value, dict):
        raise MalformedEventError(f"the notice has no object {name}")
    return value


def _decode(key: str) -> str:
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError as error:
        raise MalformedEventError("the object's key is not percent-encoded UTF-8") from error


def _checked(key: str) -> str:
    if len(plain(key, "the object's key").encode()) > KEY_LIMIT_BYTES:
        raise MalformedEventError(f"the object's key is longer than {KEY_LIMIT_BYTES} bytes")
    return key


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

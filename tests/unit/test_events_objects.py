"""Records of S3 servers: keys, versions, and what an upload must have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from events import MalformedEventError, ObjectCreated, parse_triggers


def notice(
    *, source: str | None = "aws:s3", name: object = "ObjectCreated:Put", bucket: object = "uploads", **entry: Any
) -> dict[str, Any]:
    """A notification of one record."""
    entry = {"key": "a.png", "sequencer": "0A"} | entry
    record = {"eventSource": source, "eventName": name, "s3": {"bucket": {"name": bucket}, "object": entry}}
    return {"Records": [record]}


def eventbridge(**entry: Any) -> dict[str, Any]:
    """An event of EventBridge."""
    detail = {"bucket": {"name": "uploads"}, "object": {"key": "a.png", "sequencer": "0A"} | entry}
    return {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}


def upload(content: dict[str, Any]) -> ObjectCreated:
    """The one upload that it tells of."""
    (created,) = parse_triggers({}, json.dumps(content).encode()).triggers
    assert isinstance(created, ObjectCreated)
    return created


@pytest.mark.parametrize(
    ("source", "sent", "key", "literal_key"),
    [
        ("aws:s3", "in/a+b%2Bc%20%25.png", "in/a b+c %.png", ""),
        ("minio:s3", "in%2Fa+b.png", "in/a b.png", ""),
        ("ceph:s3", "in/a+b%2B.png", "in/a+b%2B.png", ""),
        ("rustfs:s3", "in%2Fa+b.png", "in/a b.png", "in%2Fa+b.png"),
        ("rustfs:s3", "in/a.png", "in/a.png", ""),
        (None, "a+b", "a b", "a+b"),
    ],
)
def test_keys_are_decoded_by_who_wrote_them(source: str | None, sent: str, key: str, literal_key: str) -> None:
    """AWS and MinIO encode keys, Ceph doesn't; of a stranger both readings are kept."""
    created = upload(notice(source=source, key=sent))
    assert (created.key, created.literal_key) == (key, literal_key)


def test_keys_of_eventbridge_are_literal() -> None:
    """EventBridge's plus is a plus."""
    assert upload(eventbridge(key="a+b%20.png")).key == "a+b%20.png"


@pytest.mark.parametrize(
    "name", ["ObjectCreated:Put", "s3:ObjectCreated:CompleteMultipartUpload", "ObjectCreated:Copy"]
)
def test_every_kind_of_upload_counts(name: str) -> None:
    """However an object was written, with or without the prefix of the name."""
    assert upload(notice(name=name)).key == "a.png"


@pytest.mark.parametrize(
    "name",
    [
        "ObjectRemoved:Delete",
        "s3:ObjectRemoved:DeleteMarkerCreated",
        "ObjectRestore:Completed",
        "ObjectTagging:Put",
        "s3:ObjectCreated:PutTagging",
        "s3:ObjectCreated:DeleteTagging",
        "s3:ObjectCreated:PutRetention",
        "s3:ObjectCreated:PutLegalHold",
        "ObjectCreatedSomehow:Put",
    ],
)
def test_other_changes_are_ignored(name: str) -> None:
    """What leaves no new object asks for nothing, MinIO's changes of tags and locks among it."""
    assert parse_triggers({}, json.dumps(notice(name=name)).encode()).triggers == ()


@pytest.mark.parametrize(
    ("entry", "mark"),
    [
        ({"versionId": "V1", "sequencer": "0A", "eTag": "E"}, "V1"),
        ({"versionId": "", "sequencer": "0A", "eTag": "E"}, "a"),
        ({"versionId": "null", "sequencer": "0A", "eTag": "E"}, "a"),
        ({"versionId": None, "sequencer": "", "eTag": '"E-2"'}, "E-2"),
        ({"sequencer": "000", "eTag": "E"}, "E"),
    ],
)
def test_identity_is_version_else_sequencer_else_etag(entry: dict[str, Any], mark: str) -> None:
    """An empty version (Ceph) and the version `null`, which every upload replaces, tell nothing."""
    assert upload(notice(**entry)).identity == ("uploads", "a.png", mark)


def test_sequencers_are_numbers() -> None:
    """Padding and case make no second upload of one."""
    assert (
        upload(notice(sequencer="0055AED6DCD90281E5")).identity
        == upload(eventbridge(sequencer="55aed6dcd90281e5")).identity
    )


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [(0, 0), (3, 3), (None, None), (-1, None), (True, None), ("3", None), (3.5, None), ([], None)],
)
def test_a_size_is_a_number_of_bytes_or_unknown(size: object, size_bytes: int | None) -> None:
    """The size is a hint; a notice is not refused for it."""
    assert upload(notice(size=size)).size_bytes == size_bytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (notice(name=None), "the record's eventName is missing or empty"),
        (notice(name=7), "the record's eventName must be a string"),
        (notice(bucket=""), "the bucket's name is missing or empty"),
        (notice(bucket=["uploads"]), "the bucket's name must be a string"),
        (notice(key=""), "the object's key is missing or empty"),
        (notice(key={}), "the object's key must be a string"),
        (notice(key="a%00b"), "the object's key has a control character or half a surrogate pair"),
        (notice(key="a%0Ab"), "the object's key has a control character or half a surrogate pair"),
        (notice(key="a\u0000b", source="ceph:s3"), "the object's key has a control character or half a surrogate pair"),
        (notice(key="%ED%A0%80"), "the object's key is not percent-encoded UTF-8"),
        (notice(key="%FF"), "the object's key is not percent-encoded UTF-8"),
        (notice(key="é" * 513), "the object's key is longer than 1024 bytes"),
        (notice(sequencer=None), "the object has neither version id nor sequencer nor ETag: its uploads look alike"),
        (notice(sequencer=10), "the object's sequencer must be a string"),
        (notice(versionId=1), "the object's versionId must be a string"),
        (eventbridge(etag=1), "the object's etag must be a string"),
        ({"Records": [{"eventName": "ObjectCreated:Put", "s3": []}]}, "the notice has no object s3"),
        ({"Records": [{"eventName": "ObjectCreated:Put", "s3": {}}]}, "the notice has no object object"),
        ({"source": "aws.s3", "detail-type": "Object Created"}, "the notice has no object detail"),
    ],
)
def test_an_upload_that_lacks_something_is_refused(content: dict[str, Any], message: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(MalformedEventError) as caught:
        upload(content)
    assert str(caught.value) == message


def test_the_longest_key_is_accepted() -> None:
    """1,024 bytes of UTF-8, counted after decoding."""
    assert upload(notice(key="%C3%A9" * 512)).key == "é" * 512

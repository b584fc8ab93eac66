"""Samples of every accepted dialect: what is published is what is read."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from events import JobEnded, JobRequested, ObjectCreated, parse_triggers
from tests.support.samples import INDEX, SAMPLES, SCHEMAS, sample, schema

if TYPE_CHECKING:
    from events import Delivery, Trigger

NAMES = sorted(entry.name.removesuffix(".json") for entry in SCHEMAS.iterdir())
# Each file, with every way in which one and the same upload is told by AWS.
SAME_UPLOAD = sorted(
    name for name, entry in INDEX.items() if any(t.get("key") == "upscale/red flower.jpg" for t in entry["triggers"])
)


def read(name: str) -> Delivery:
    """What a sample asks for."""
    request = sample(name)
    return parse_triggers(request.headers, request.body)


def published(trigger: Trigger) -> dict[str, Any]:
    """A trigger as the index writes it: data is in the sample itself."""
    members = {name: value for name, value in asdict(trigger).items() if name != "data"}
    identity = {"identity": list(trigger.identity)} if isinstance(trigger, ObjectCreated) else {}
    return {"trigger": type(trigger).__name__} | members | identity


def validator(name: str) -> Draft202012Validator:
    """The schema of that name, able to find the others beside it."""
    beside = Registry().with_resources((f"{other}.json", Resource.from_contents(schema(other))) for other in NAMES)
    return Draft202012Validator(schema(name), registry=beside)


def test_index_and_files_are_the_same_set() -> None:
    """No sample is without its expected triggers, and none is expected that isn't there."""
    assert {entry.name for entry in SAMPLES.iterdir()} == {"index.json", *INDEX}


@pytest.mark.parametrize("name", INDEX)
def test_a_sample_asks_for_what_the_index_says(name: str) -> None:
    """Triggers in order, whether they are replied to, and a topic that waits for its confirmation."""
    delivery, expected = read(name), INDEX[name]
    assert [published(trigger) for trigger in delivery.triggers] == expected["triggers"]
    assert delivery.replies == expected["replies"]
    assert delivery.unconfirmed_topic == expected.get("unconfirmed_topic", "")


def test_every_dialect_and_every_trigger_has_a_sample() -> None:
    """The samples hold each kind of trigger and each dialect, ignored ones and a subscription."""
    triggers = [trigger for entry in INDEX.values() for trigger in entry["triggers"]]
    assert {trigger["trigger"] for trigger in triggers} == {"JobRequested", "JobEnded", "ObjectCreated", "Tick"}
    assert {trigger.get("dialect") for trigger in triggers} >= {"aws:s3", "minio:s3", "ceph:s3", "eventbridge", "other"}
    assert any(not entry["triggers"] for entry in INDEX.values())


def test_one_upload_is_one_identity_in_every_dialect() -> None:
    """What AWS tells of one upload through any chain of services is one and the same job."""
    uploads = [INDEX[name]["triggers"][0]["identity"] for name in SAME_UPLOAD if not name.startswith("s3-keys")]
    assert len(uploads) >= 15
    assert all(identity == uploads[0] for identity in uploads)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name: str) -> None:
    """Each published schema is one of JSON Schema 2020-12."""
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("name", [n for n in INDEX if n.startswith("job-")])
def test_samples_satisfy_their_schemas(name: str) -> None:
    """The data of each event of ours satisfies the schema of its type."""
    for trigger in read(name).triggers:
        assert isinstance(trigger, JobRequested | JobEnded)
        kind = "job.requested" if isinstance(trigger, JobRequested) else name.removesuffix(".http").replace("-", ".")
        validator(kind).validate(trigger.data)


def test_schemas_tell_results_apart() -> None:
    """A failed job's manifest does not satisfy the schema of a completed one, nor the other way round."""
    for schema_name, sample_name in (("job.completed", "job-failed.http"), ("job.failed", "job-completed.http")):
        (ended,) = read(sample_name).triggers
        assert isinstance(ended, JobEnded)
        assert not validator(schema_name).is_valid(ended.data)


@pytest.mark.parametrize(
    "document",
    [
        {"workflow": {}},
        {"template": "upscale"},
        {"template": "upscale", "parameters": {"scale": 2}, "label": "cat", "deadline_seconds": 300},
        {"workflow": {}, "webhook": {"url": "https://shop.example.com/hooks"}, "deadline_seconds": None},
    ],
)
def test_job_documents_satisfy_their_schema(document: dict[str, Any]) -> None:
    """A job is a workflow or a template; the schema of requested events takes the same documents."""
    validator("job").validate(document)
    validator("job.requested").validate(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"label": "cat"},
        {"workflow": {}, "template": "upscale"},
        {"workflow": {}, "parameters": {}},
        {"workflow": []},
        {"workflow": {}, "webhook": {"url": "file:///etc/passwd"}},
        {"workflow": {}, "webhook": "https://shop.example.com"},
        {"workflow": {}, "webhook": {"url": "https://shop.example.com", "secret": "s"}},
        {"workflow": {}, "deadline_seconds": 0},
        {"workflow": {}, "workflows": {}},
        {"job_id": "0" * 32, "workflow": {}},
        {"job_id": "../../etc"},
        [],
    ],
)
def test_other_documents_do_not(document: object) -> None:
    """What is no job, or two at once, satisfies neither schema."""
    assert not validator("job").is_valid(document)
    assert not validator("job.requested").is_valid(document)


def test_a_stored_job_is_named_by_its_id_alone() -> None:
    """The id of a stored job is the data of an event, but no job document."""
    stored = {"job_id": "0" * 32}
    validator("job.requested").validate(stored)
    assert not validator("job").is_valid(stored)

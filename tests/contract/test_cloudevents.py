"""Events against the SDK that other programs use, and samples and schemas against the code."""

from __future__ import annotations

import json
from dataclasses import fields
from email.parser import HeaderParser
from importlib.resources import files
from typing import Any

import pytest
from cloudevents.conversion import to_binary
from cloudevents.conversion import to_structured as sdk_to_structured
from cloudevents.http import CloudEvent, from_http

from events import JOB_COMPLETED, JOB_FAILED, JOB_REQUESTED, Event, parse_cloudevent, to_structured
from function.job import JobDocument, JobResult, Output, derived_job_id, parse_job_document
from function.jobs.manifest import parse_manifest, to_manifest

SCHEMAS = files("events") / "schemas"
SAMPLES = files("events") / "samples"
STRUCTURED = {"content-type": "application/cloudevents+json"}


def schema(name: str) -> dict[str, Any]:
    """A published schema of event data."""
    document: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_bytes())
    return document


def sample(name: str) -> Event:
    """A structured sample, read as the function reads it."""
    return parse_cloudevent(STRUCTURED, (SAMPLES / name).read_bytes())


def binary_sample() -> Event:
    """The sample of an HTTP request in binary mode, read as the function reads it."""
    head, body = (SAMPLES / "job-requested.binary.http").read_text().split("\n\n", 1)
    headers = HeaderParser().parsestr(head.split("\n", 1)[1])
    return parse_cloudevent(dict(headers.items()), body.encode())


@pytest.mark.parametrize("write", [to_binary, sdk_to_structured])
def test_events_of_the_sdk_are_read(write: Any) -> None:
    """An event that the CloudEvents SDK writes in either mode arrives whole."""
    attributes = {"id": "7", "source": "/shop", "type": JOB_REQUESTED, "subject": "cat", "time": "2026-03-02T09:30:00Z"}
    event = CloudEvent(attributes | {"datacontenttype": "application/json"}, {"workflow": {}})
    assert parse_cloudevent(*write(event)) == Event(**attributes, data={"workflow": {}})


def test_the_sdk_reads_our_events() -> None:
    """The CloudEvents SDK reads a reply with every attribute."""
    time = "2026-03-02T09:30:00.000Z"
    headers, body = to_structured(JOB_FAILED, id="7", source="/comfyfn", subject="cat", time=time, data={"a": "日本"})
    event = from_http(headers, body)
    assert event.get_data() == {"a": "日本"}
    assert dict(event.get_attributes()) == {
        "specversion": "1.0",
        "id": "7",
        "source": "/comfyfn",
        "type": JOB_FAILED,
        "subject": "cat",
        "time": time,
        "datacontenttype": "application/json",
    }


def test_both_modes_of_the_sample_are_one_event() -> None:
    """The requested sample says the same in structured and in binary mode."""
    assert sample("job-requested.structured.json") == binary_sample()


def test_the_requested_sample_is_a_job() -> None:
    """The requested sample carries a job document that is accepted."""
    event = binary_sample()
    assert event.type == JOB_REQUESTED
    assert parse_job_document(event.data, job_id="0" * 32).label == event.data["label"]


@pytest.mark.parametrize(("name", "kind"), [("job-completed.json", JOB_COMPLETED), ("job-failed.json", JOB_FAILED)])
def test_result_samples_are_what_is_written(name: str, kind: str) -> None:
    """A result sample holds a manifest, and writing that manifest's event gives the sample."""
    event = sample(name)
    result = parse_manifest(json.dumps(event.data).encode())
    _, body = to_structured(
        kind,
        id=f"{result.job_id}.{result.status}",
        source="/comfyfn",
        subject=result.job_id,
        time=result.finished_at,
        data=to_manifest(result),
    )
    assert json.loads(body) == json.loads((SAMPLES / name).read_bytes())


@pytest.mark.parametrize("name", ["job-completed.json", "job-failed.json"])
def test_result_samples_answer_the_requested_sample(name: str) -> None:
    """The job of the result samples is the one that the requested sample asks for."""
    requested = binary_sample()
    assert sample(name).subject == derived_job_id(requested.source, requested.id)


def test_requested_schema_is_the_job_document() -> None:
    """The schema of requested data is the one that requests are checked by."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    assert schema("job.requested") == dialect | JobDocument.model_json_schema()


@pytest.mark.parametrize("name", ["job.completed", "job.failed"])
def test_result_schemas_name_every_field(name: str) -> None:
    """The schemas of result data name the fields of the manifest, all of them required."""
    document = schema(name)
    assert set(document["properties"]) == set(document["required"]) == {field.name for field in fields(JobResult)}


def test_output_schema_names_every_field() -> None:
    """The schema of an output file names its fields, without the bytes that only inline answers have."""
    document = schema("job.completed")["$defs"]["output"]
    names = {field.name for field in fields(Output)} - {"data"}
    assert set(document["properties"]) == set(document["required"]) == names


@pytest.mark.parametrize(
    ("schema_name", "sample_name"),
    [
        ("job.requested", "job-requested.structured.json"),
        ("job.completed", "job-completed.json"),
        ("job.failed", "job-failed.json"),
    ],
)
def test_samples_satisfy_their_schemas(schema_name: str, sample_name: str) -> None:
    """Each sample's data satisfies the schema of its type, and the schema is a valid one."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema(schema_name))
    jsonschema.Draft202012Validator(schema(schema_name)).validate(sample(sample_name).data)


def test_schemas_tell_results_apart() -> None:
    """A failed job's manifest does not satisfy the schema of a completed one, nor the other way round."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    for schema_name, sample_name in (("job.completed", "job-failed.json"), ("job.failed", "job-completed.json")):
        assert not jsonschema.Draft202012Validator(schema(schema_name)).is_valid(sample(sample_name).data)

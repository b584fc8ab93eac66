"""Events against the SDK that other programs use, and samples and schemas against the code."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from cloudevents.conversion import to_binary
from cloudevents.conversion import to_structured as sdk_to_structured
from cloudevents.http import CloudEvent, from_http

from events import JOB_COMPLETED, JOB_FAILED, JOB_REQUESTED, Event, parse_cloudevent, to_structured
from function.job import JobDocument, JobResult, Output, derived_job_id, parse_job_document
from function.jobs.ended import to_ended_event
from function.jobs.manifest import parse_manifest
from function.storage import open_store
from function.templates.store import TemplateStore
from tests.support.samples import sample, schema

NO_TEMPLATES = TemplateStore(open_store("file:///nowhere"))


def event(name: str) -> Event:
    """The event of a sample, read as the function reads it."""
    request = sample(f"{name}.http")
    return parse_cloudevent(request.headers, request.body)


@pytest.mark.parametrize("write", [to_binary, sdk_to_structured])
def test_events_of_the_sdk_are_read(write: Any) -> None:
    """An event that the CloudEvents SDK writes in either mode arrives whole."""
    attributes = {"id": "7", "source": "/shop", "type": JOB_REQUESTED, "subject": "cat", "time": "2026-03-02T09:30:00Z"}
    written = CloudEvent(attributes | {"datacontenttype": "application/json"}, {"workflow": {}})
    assert parse_cloudevent(*write(written)) == Event(**attributes, data={"workflow": {}})


def test_the_sdk_reads_our_events() -> None:
    """The CloudEvents SDK reads a reply with every attribute."""
    time = "2026-03-02T09:30:00.000Z"
    headers, body = to_structured(JOB_FAILED, id="7", source="/comfyfn", subject="cat", time=time, data={"a": "日本"})
    read = from_http(headers, body)
    assert read.get_data() == {"a": "日本"}
    assert dict(read.get_attributes()) == {
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
    assert event("job-requested.structured") == event("job-requested.binary")


def test_the_requested_sample_is_a_job() -> None:
    """The requested sample carries a job document that is accepted."""
    requested = event("job-requested.binary")
    assert requested.type == JOB_REQUESTED
    assert parse_job_document(requested.data, job_id="0" * 32, templates=NO_TEMPLATES).label == requested.data["label"]


@pytest.mark.parametrize(("name", "kind"), [("job-completed", JOB_COMPLETED), ("job-failed", JOB_FAILED)])
def test_result_samples_are_what_is_written(name: str, kind: str) -> None:
    """A result sample holds a manifest, and writing that manifest's event gives the sample."""
    result = parse_manifest(json.dumps(event(name).data).encode())
    assert event(name).type == kind
    _, body = to_ended_event(result)
    assert json.loads(body) == json.loads(sample(f"{name}.http").body)


@pytest.mark.parametrize("name", ["job-completed", "job-failed"])
def test_result_samples_answer_the_requested_sample(name: str) -> None:
    """The job of the result samples is the one that the requested sample asks for."""
    requested = event("job-requested.binary")
    assert event(name).subject == derived_job_id(requested.source, requested.id)


def test_the_job_schema_has_every_field_of_a_job_document() -> None:
    """The published schema is the one that requests are checked by."""
    published = schema("job")
    assert {name: value for name, value in published.items() if name != "$schema"} == JobDocument.model_json_schema()


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

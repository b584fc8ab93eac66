"""A job's records as bytes: the manifest, timestamps, JSON in one form."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from function.errors import RecordInvalidError
from function.handover import parse_handover
from function.job import Job, JobResult, Output
from function.workflow import without_url_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

_Record = TypeVar("_Record")

MAX_MANIFEST_BYTES = 16 * 1024**2


def utc_now() -> datetime:
    """The wall clock that records are dated by."""
    return datetime.now(UTC)


def to_timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`, as CloudEvents and JavaScript write it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_job_record(job: Job, *, created_at: str) -> bytes:
    """The record of a job, without what may be a secret: credentials, and the queries of its workflow's URLs."""
    upload = replace(job.upload, credentials=()) if job.upload else None
    workflow, request = without_url_secrets(job.workflow), without_url_secrets(job.request)
    kept = replace(job, workflow=workflow, request=request, upload=upload, credentials=(), created_at=created_at)
    record = asdict(kept)
    del record["credentials"]  # they are for one request
    return to_json(record)


def parse_job(record: dict[str, Any]) -> Job:
    """A job from its record; the inverse of `to_job_record` but for the secrets."""
    return Job(**record | parse_handover(record) | {"preloads": tuple(record["preloads"])})


def to_manifest(result: JobResult) -> dict[str, Any]:
    """The manifest of a result: its fields without the bytes that a caller may get inline."""
    manifest = asdict(result)
    for output in manifest["outputs"]:
        del output["data"]
    manifest["outputs"] = list(manifest["outputs"])
    return manifest


def parse_manifest(data: bytes) -> JobResult:
    """Read a stored manifest; the inverse of `to_manifest`.

    Raises:
        RecordInvalidError: It is none.
    """

    def build(manifest: dict[str, Any]) -> JobResult:
        return JobResult(**{**manifest, "outputs": tuple(Output(**output) for output in manifest["outputs"])})

    return parse_record("result.json", data, build)


def parse_record(name: str, data: bytes, build: Callable[[Any], _Record]) -> _Record:
    """Build what a record's JSON stands for.

    Raises:
        RecordInvalidError: Naming the record; its content is not repeated.
    """
    try:
        return build(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordInvalidError(f"{name} is damaged: delete the job's records or restore it") from error


def to_json(document: object) -> bytes:
    """A record: equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()

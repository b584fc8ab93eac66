"""What became of a job, and its files."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Response
from werkzeug.exceptions import NotFound

from function.http.responses import json_response
from function.job import JOB_ID
from function.jobs import to_manifest
from function.storage.objects import ObjectMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Request

    from function.lifecycle import Function
    from function.storage.objects import ObjectInfo, ObjectStore

LINK_SECONDS = 3600
_CHUNK_BYTES = 1024**2


def show(function: Function, _request: Request, job_id: str) -> Response:
    """Progress of a job that this pod runs, or the manifest of one that has ended."""
    if not JOB_ID.fullmatch(job_id):
        raise NotFound
    progress = function.progress(job_id)
    if progress is not None:
        status = "queued" if progress.stage == "queued" else "running"
        return json_response({"job_id": job_id, "status": status, "progress": asdict(progress)})
    result = function.line.records.result(job_id)
    if result is None:
        raise NotFound
    return json_response(to_manifest(result))


def fetch_output(function: Function, _request: Request, key: str) -> Response:
    """One stored output file: redirected to S3 with a link that expires, or streamed from a local directory."""
    store, key = function.line.results, f"outputs/{key}"
    try:
        info = store.head(key)
    except ObjectMissingError as error:
        raise NotFound from error
    link = store.presign(key, expires_seconds=LINK_SECONDS)
    if "://" in link:
        return Response(status=HTTPStatus.FOUND, headers={"Location": link})
    response = Response(_chunks(store, info), mimetype=info.media_type)
    response.content_length = info.size_bytes
    return response


def _chunks(store: ObjectStore, info: ObjectInfo) -> Iterator[bytes]:
    for start in range(0, info.size_bytes, _CHUNK_BYTES):
        yield store.get_range(info.key, start, _CHUNK_BYTES, etag=info.etag)

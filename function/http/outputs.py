"""`GET /outputs/...`: the stored files of jobs."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Response
from werkzeug.exceptions import NotFound

from function.errors import InputRefusedError
from function.storage.objects import ObjectMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Request

    from function.lifecycle import Function
    from function.storage.objects import ObjectInfo, ObjectStore

LINK_SECONDS = 3600
_CHUNK_BYTES = 1024**2


def fetch(function: Function, _request: Request, key: str) -> Response:
    """One stored output file: redirected to S3 with a link that expires, or streamed from a local directory."""
    store, key = function.jobs.results, f"outputs/{key}"
    try:
        info = store.head(key)
    except (ObjectMissingError, InputRefusedError) as error:  # refused: what can't be a key
        raise NotFound from error
    link = function.links.presign(key, expires_seconds=LINK_SECONDS)
    if "://" in link:
        return Response(status=HTTPStatus.FOUND, headers={"Location": link})
    response = Response(_chunks(store, info), mimetype=info.media_type)
    response.content_length = info.size_bytes
    return response


def _chunks(store: ObjectStore, info: ObjectInfo) -> Iterator[bytes]:
    for start in range(0, info.size_bytes, _CHUNK_BYTES):
        yield store.get_range(info.key, start, _CHUNK_BYTES, etag=info.etag)

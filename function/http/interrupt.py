"""`POST /interrupt`: end a job by the id that its client gave it, or by ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from function.http.bodies import parse_json, read_body
from function.http.responses import check_json, json_response
from function.job import validated

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function

_MAX_BODY_BYTES = 65_536


class InterruptRequest(BaseModel):
    """The request body."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = Field(min_length=1, description="The id that the answer to the job's request has.")


def interrupt(function: Function, request: Request) -> Response:
    """End a job that waits or runs: 200. One that has ended, or is none that this pod or storage knows: 404."""
    check_json(request)
    body = read_body(request, max_bytes=min(_MAX_BODY_BYTES, function.settings.max_body_bytes))
    wanted = validated(InterruptRequest, parse_json(body))
    found = function.interrupt(wanted.id)
    document = {"id": wanted.id, "interrupted": "success" if found else "failed"}
    return json_response(document, status=200 if found else 404)

"""Responses written in one manner by every edge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Response

from function.errors import ComfyfnError, RetryableError, UnauthorizedError, UnsupportedMediaTypeError
from function.streamed import DocumentWithFiles, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import socket

    from flask import Request
    from werkzeug.exceptions import HTTPException


def check_json(request: Request) -> None:
    """Refuse a request that does not say that its body is JSON, before the body is read.

    A browser lets any page send a form or plain text anywhere without asking, but not JSON.

    Raises:
        UnsupportedMediaTypeError: It says something else, or nothing.
    """
    if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
        raise UnsupportedMediaTypeError("the body must be JSON: send the header Content-Type: application/json")


def connection_of(request: Request) -> socket | None:
    """The connection that a request came on, where the server tells: gunicorn does, others don't."""
    connection: socket | None = request.environ.get("gunicorn.socket")
    return connection


def to_response(
    body: bytes | DocumentWithFiles, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Build a response that leaves the request's unread body unread.

    functions-framework reads the whole request after each response that isn't streamed, however large it is; a body
    that was refused must not be read. An iterator counts as streamed.
    """
    pieces = iter([body]) if isinstance(body, bytes) else iter(body)
    response = Response(pieces, status=status, headers=dict(headers or {}))
    response.content_length = len(body)
    return response


def json_response(
    document: DocumentWithFiles | object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a JSON document."""
    body = document if isinstance(document, DocumentWithFiles) else to_json(document)
    return to_response(body, status=status, headers={"Content-Type": "application/json", **(headers or {})})


def error_response(error: ComfyfnError) -> Response:
    """Answer with an error: its line, its code and its details."""
    document = {"error": error.message, "code": error.code, **_as_fastify(error.status, error.message), **error.details}
    return json_response(document, status=error.status, headers=error_headers(error))


def error_headers(error: ComfyfnError) -> dict[str, str]:
    """What an error says in headers, whatever the form of its body."""
    if isinstance(error, RetryableError):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": 'Bearer realm="comfyfn"'}
    return {}


def http_error_response(error: HTTPException) -> Response:
    """Answer with an error of the routing: no such route, no such method."""
    status = error.code or 500
    document = {"error": error.name, "code": http_error_code(error), **_as_fastify(status, error.name)}
    return json_response(document, status=status, headers=http_error_headers(error))


def http_error_code(error: HTTPException) -> str:
    """The word for programs of an error of the routing."""
    return error.name.lower().replace(" ", "_")


def http_error_headers(error: HTTPException) -> dict[str, str]:
    """What an error of the routing says in headers."""
    return {name: value for name, value in error.get_headers() if name == "Allow"}


def _as_fastify(status: int, message: str) -> dict[str, Any]:
    """What clients of comfyui-api read of an error that its web framework answers."""
    return {"message": message, "statusCode": status}

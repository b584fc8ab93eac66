"""Errors in the form that clients of OpenAI read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from function.errors import TemplateMissingError
from function.http.responses import error_headers, http_error_code, http_error_headers, json_response

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.exceptions import HTTPException

    from function.errors import ComfyfnError

_TYPES = {HTTPStatus.UNAUTHORIZED: "authentication_error", HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}


def is_openai_path(path: str) -> bool:
    """Whether the errors of a path have this form."""
    return path.startswith("/v1/")


def openai_error_response(error: ComfyfnError) -> Response:
    """Answer with an error of ours; `param` is the request's field where one is to blame."""
    missing = isinstance(error, TemplateMissingError)
    code, param = ("model_not_found", "model") if missing else (error.code, error.details.get("param"))
    return _response(error.status, error.message, code=code, param=param, headers=error_headers(error))


def openai_http_error_response(error: HTTPException) -> Response:
    """Answer with an error of the routing: no such route, no such method."""
    return _response(error.code or 500, error.name, code=http_error_code(error), headers=http_error_headers(error))


def _response(status: int, message: str, *, code: str, headers: dict[str, str], param: object = None) -> Response:
    internal = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if internal else _TYPES.get(HTTPStatus(status), "invalid_request_error")
    members = {"message": message, "type": kind, "param": param, "code": code}
    return json_response({"error": members}, status=status, headers=headers)

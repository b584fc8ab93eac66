"""The HTTP edges: one room per protocol.

functions-framework hands every path and method to the one function it serves, so the routes are matched here. A room is
imported when its route is first asked for: probes must be answered before everything else has been imported.
"""

from __future__ import annotations

import logging
import re
import uuid
from importlib import import_module
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException

from function.errors import ComfyfnError
from function.http.access import check_access
from function.http.openai_errors import is_openai_path, openai_error_response, openai_http_error_response
from function.http.responses import error_response, http_error_response
from function.http.routes import ROUTES
from function.http.sharing import is_preflight, preflight, share
from function.logs import mark_request

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function

_log = logging.getLogger("comfyfn")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def dispatch(function: Function, request: Request) -> Response:
    """Answer one request; whatever goes wrong becomes a short JSON error without a stack trace.

    Answer and log lines have the request's `X-Request-Id`, or one of ours if it brings none that can be logged.
    """
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    mark_request(request_id)
    response = _answer_or_error(function, request)
    response.call_on_close(lambda: mark_request(""))  # a stream is answered until then
    response.headers["X-Request-Id"] = request_id
    share(response, request, function.settings.cors_origins)
    return response


def answer_http_error(error: HTTPException, request: Request) -> Response:
    """Answer with an error of the routing, ours or that of the framework around us, in the form that the path has."""
    return openai_http_error_response(error) if is_openai_path(request.path) else http_error_response(error)


def _answer_or_error(function: Function, request: Request) -> Response:
    on_error = openai_error_response if is_openai_path(request.path) else error_response
    try:
        return _answer(function, request)
    except ComfyfnError as error:
        return on_error(error)
    except HTTPException as error:
        return answer_http_error(error, request)
    except Exception:  # noqa: BLE001  (the one place that answers for every mistake of ours)
        _log.exception("unexpected error while answering %s %s", request.method, request.path)
        return on_error(ComfyfnError("internal error; the log has the details"))


def _answer(function: Function, request: Request) -> Response:
    adapter = ROUTES.bind_to_environ(request.environ)
    if function.settings.cors_origins and is_preflight(request) and (methods := adapter.allowed_methods()):
        return preflight(methods)
    (room, name), arguments = adapter.match()
    check_access(function.settings, request, room)
    endpoint: Any = getattr(import_module(f"function.http.{room}"), name)
    response: Response = endpoint(function, request, **arguments)
    return response

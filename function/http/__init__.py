"""The HTTP edges: one room per protocol, one table of routes.

functions-framework hands every path and method to the one function it serves, so the routes are matched here. A room is
imported when its route is first asked for: probes must be answered before everything else has been imported.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from function.errors import ComfyfnError
from function.http.responses import error_response, http_error_response

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function

_log = logging.getLogger("comfyfn")

_ROUTES = Map(
    [
        Rule("/", methods=["POST"], endpoint=("cloudevents", "receive")),
        Rule("/prompt", methods=["POST"], endpoint=("prompt", "run")),
        Rule("/interrupt", methods=["POST"], endpoint=("interrupt", "interrupt")),
        Rule("/workflow", methods=["GET"], endpoint=("workflows", "show_names")),
        Rule("/workflow/<path:name>", methods=["GET"], endpoint=("workflows", "show")),
        Rule("/workflow/<path:name>", methods=["POST"], endpoint=("workflows", "run")),
        Rule("/models", methods=["GET"], endpoint=("models", "show")),
        Rule("/download", methods=["POST"], endpoint=("models", "download")),
        Rule("/jobs", methods=["POST"], endpoint=("jobs", "submit")),
        Rule("/jobs", methods=["GET"], endpoint=("jobs", "show_page")),
        Rule("/jobs/<job_id>", methods=["GET"], endpoint=("jobs", "show")),
        Rule("/jobs/<job_id>/events", methods=["GET"], endpoint=("streams", "follow")),
        Rule("/jobs/<job_id>/cancel", methods=["POST"], endpoint=("jobs", "cancel")),
        Rule("/outputs/<path:key>", methods=["GET"], endpoint=("outputs", "fetch")),
        Rule("/health", methods=["GET"], endpoint=("status", "health")),
        Rule("/ready", methods=["GET"], endpoint=("status", "ready")),
        Rule("/metrics", methods=["GET"], endpoint=("metrics", "show")),
    ],
    strict_slashes=False,
    merge_slashes=False,
)


def dispatch(function: Function, request: Request) -> Response:
    """Answer one request; whatever goes wrong becomes a short JSON error without a stack trace."""
    try:
        return _answer(function, request)
    except ComfyfnError as error:
        return error_response(error)
    except HTTPException as error:
        return http_error_response(error)
    except Exception:  # noqa: BLE001  (the one place that answers for every mistake of ours)
        _log.exception("unexpected error while answering %s %s", request.method, request.path)
        return error_response(ComfyfnError("internal error; the log has the details"))


def _answer(function: Function, request: Request) -> Response:
    (room, name), arguments = _ROUTES.bind_to_environ(request.environ).match()
    endpoint: Any = getattr(import_module(f"function.http.{room}"), name)
    response: Response = endpoint(function, request, **arguments)
    return response

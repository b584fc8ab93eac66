"""`GET /health` and `GET /ready`: answered at once, whatever the GPU is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from function import __version__
from function.http.responses import json_response

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function


def health(function: Function, _request: Request) -> Response:
    """Liveness: 200 while settings hold and the engine process runs, also while it boots; else 500."""
    if function.alive:
        return _state(function, 200, "healthy")
    return _state(function, 500, "not healthy")


def ready(function: Function, _request: Request) -> Response:
    """Readiness: 200 while the engine answers and the pod takes jobs; else 503."""
    if function.ready:
        return _state(function, 200, "ready")
    return _state(function, 503, "not ready")


def _state(function: Function, code: int, state: str) -> Response:
    document = {"version": __version__, "status": state}
    if function.problem:
        document["detail"] = function.problem
    return json_response(document, status=code)

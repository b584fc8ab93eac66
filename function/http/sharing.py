"""Cross-origin resource sharing (CORS): which web pages may read answers. No cookies, no credentials mode."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from function.http.responses import to_response

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flask import Request, Response

_PREFLIGHT_SECONDS = 3600


def is_preflight(request: Request) -> bool:
    """Whether a browser asks on behalf of a page what it may send."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def preflight(methods: Iterable[str]) -> Response:
    """The answer to a preflight: the methods of the route, and any header.

    A wildcard does not cover `Authorization` (Fetch, section 3.3.3), so that is named.
    """
    headers = {
        "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
        "Access-Control-Allow-Headers": "*, Authorization",
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    return to_response(b"", status=HTTPStatus.NO_CONTENT, headers=headers)


def share(response: Response, request: Request, origins: Sequence[str]) -> None:
    """Let a page of one of these origins read an answer, error or not, with its headers.

    Args:
        response: The answer.
        request: It names the page's origin.
        origins: CORS_ORIGINS.
    """
    if not origins:
        return
    origin = request.headers.get("Origin", "")
    if "*" not in origins:
        response.vary.add("Origin")
    if origin and ("*" in origins or origin.lower() in origins):
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
        response.headers["Access-Control-Expose-Headers"] = "*"

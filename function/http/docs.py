"""`GET /docs`: the OpenAPI document as a page that needs nothing from anywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from function.http.responses import to_response

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function

_PAGE = Path(__file__).with_name("docs.html")
_POLICY = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def show(_function: Function, _request: Request) -> Response:
    """The page; it asks for the document itself, with the reader's token where there are tokens."""
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": _POLICY}
    return to_response(_PAGE.read_bytes(), headers=headers)

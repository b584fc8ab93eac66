"""The functions-framework target.

The signature is `http`: a `cloud_event` target can't reply with an event. It runs under our own gunicorn settings
(`comfyfn serve`) or under any launcher of functions-framework (`--target handle --source function/main.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from function import process
from function.http import dispatch

if TYPE_CHECKING:
    from flask import Request, Response


@functions_framework.http
def handle(request: Request) -> Response:
    """Answer one request of any path and method."""
    return dispatch(process.function(), request)

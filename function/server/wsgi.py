"""The WSGI application: functions-framework's around the target in `function/main.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import functions_framework
from flask import request
from werkzeug.exceptions import HTTPException

from function.http import answer_http_error

if TYPE_CHECKING:
    from flask import Flask


def create_app() -> Flask:
    """Build the application that gunicorn serves."""
    source = Path(__file__).parents[1] / "main.py"
    app: Flask = functions_framework.create_app(target="handle", source=str(source))  # type: ignore[no-untyped-call]
    # create_app makes every module of the package importable a second time, as a top-level name.
    sys.path.remove(str(source.parent.resolve()))
    # Paths that never get to the target, such as those with line breaks.
    app.register_error_handler(HTTPException, lambda error: answer_http_error(error, request))
    return app

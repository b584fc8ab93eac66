"""The function under gunicorn, from the command line's point of view."""

from __future__ import annotations

import os
import sys

from gunicorn.app.wsgiapp import WSGIApplication

from function.config import read_settings
from function.errors import SettingsError


def serve() -> None:
    """Serve until told to stop; a setting that is wrong ends it at once, with one line."""
    try:
        read_settings(os.environ)
    except SettingsError as error:
        sys.exit(f"Error: {error.message}")
    sys.argv = ["comfyfn serve", "-c", "python:function.server.conf", "function.server.wsgi:create_app()"]
    WSGIApplication().run()

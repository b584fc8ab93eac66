"""`comfyfn serve`: run the function as it runs in production."""

from __future__ import annotations

import os
import sys

import click
from gunicorn.app.wsgiapp import WSGIApplication

from function.config import read_settings


@click.command(name="serve")
def command() -> None:
    """Run the function; its settings come from the environment (see the README's table)."""
    read_settings(os.environ)
    sys.argv = ["comfyfn serve", "-c", "python:function.server.conf", "function.server.wsgi:create_app()"]
    WSGIApplication().run()

"""`comfyfn serve`: run the function as it runs in production."""

from __future__ import annotations

import click

from function.server.run import serve


@click.command(name="serve")
def command() -> None:
    """Run the function; its settings come from the environment (see the README's table)."""
    serve()

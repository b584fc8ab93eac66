"""The subcommands of `comfyfn`, each imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from function import __version__
from function.errors import ComfyfnError

_COMMANDS = ("serve", "run", "template", "jobs", "webhooks", "cache", "engine", "doctor")


class _LazyGroup(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"function.cli.{name}").command
        return command

    def invoke(self, context: click.Context) -> object:
        """Say what is wrong in one line, without a stack trace."""
        try:
            return super().invoke(context)
        except ComfyfnError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="comfyfn")
def group() -> None:
    """ComfyUI workflows as a serverless function."""

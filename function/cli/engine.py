"""`comfyfn engine`: the embedded engine alone, started as ComfyUI is."""

from __future__ import annotations

import sys

import click

from function.engine.embedded.__main__ import main


@click.command(
    name="engine",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[FLAGS OF COMFYUI'S main.py]",
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="")
def command(flags: tuple[str, ...]) -> None:
    """Run the embedded engine alone: ComfyUI's protocol and flags, on the CPU (`--help` lists them)."""
    try:
        status = main(flags, program="comfyfn engine")
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'comfyfn[embedded]'") from error
    sys.exit(status)

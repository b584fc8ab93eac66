"""The `comfyfn` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["serve"]:  # a pod starts with it, and does not wait for the import of what it doesn't need
        from function.server.run import serve  # noqa: PLC0415  (see above)

        serve()
    else:
        from function.cli.commands import group  # noqa: PLC0415

        group(prog_name="comfyfn")

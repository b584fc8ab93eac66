"""`python -m function.engine.embedded`: listen, start the worker thread, serve until a signal comes."""

from __future__ import annotations

import contextlib
import gc
import shutil
import socket
import sys
from typing import TYPE_CHECKING

from function.engine.embedded.folders import folders_from
from function.engine.embedded.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Sequence

_BACKLOG = 128


def main(arguments: Sequence[str]) -> int:
    """Run the core; the exit status is 0 after a signal, 1 if the port can't be had, 2 for wrong arguments."""
    options = parse_options(arguments)
    try:
        folders = folders_from(options)
    except ValueError as error:
        return _failed(str(error), 2)
    try:
        listeners = _listen(options.addresses, options.port)
    except OSError as error:
        return _failed(f"cannot listen on {','.join(options.addresses)} port {options.port}: {error.strerror}", 1)
    from function.engine.embedded.core import run  # noqa: PLC0415  (a wrong flag or a used port is told at once)

    shutil.rmtree(folders.temp, ignore_errors=True)
    try:
        run(options, folders, listeners)
    finally:
        for listener in listeners:
            listener.close()
        shutil.rmtree(folders.temp, ignore_errors=True)
    gc.freeze()  # what is left goes with the process; collecting it at exit would take 60 ms
    return 0


def _failed(message: str, status: int) -> int:
    sys.stderr.write(f"{message}\n")
    return status


def _listen(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """One listening socket for each address.

    Raises:
        OSError: The port is in use, or an address is not this machine's.
    """
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(_bound(address, port)) for address in addresses]
        opened.pop_all()
    return listeners


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

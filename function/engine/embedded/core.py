"""One running core: the worker thread, the sockets and the HTTP server, from start to the signal that ends them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn

from function.engine.embedded.executor import Executor
from function.engine.embedded.prompts import PromptQueue
from function.engine.embedded.server import Api
from function.engine.embedded.sockets import Sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from function.engine.embedded.folders import Folders
    from function.engine.embedded.nodes.node import Node
    from function.engine.embedded.options import Options


_SWITCH_SECONDS = 0.0005
"""How long a computing node keeps the interpreter from the event loop, which wants it back after every system call.

With Python's 5 ms the loop waits that long for it, message by message.
"""


def run(options: Options, folders: Folders, listeners: list[socket.socket]) -> None:
    """Serve on these sockets until SIGTERM or SIGINT; a running node doesn't delay the end."""
    for directory in (folders.input, folders.output):
        directory.mkdir(parents=True, exist_ok=True)
    sys.setswitchinterval(_SWITCH_SECONDS)
    asyncio.run(_serve(options, folders, listeners))


@functools.cache
def _load_nodes() -> Mapping[str, Node]:
    from function.engine.embedded.nodes.catalogue import NODES  # noqa: PLC0415  (numpy: 0.2 s after the port is open)

    return NODES


async def _serve(options: Options, folders: Folders, listeners: list[socket.socket]) -> None:
    sockets = Sockets()
    queue = PromptQueue(on_change=lambda: sockets.send("status", {"status": queue.info()}))
    executor = Executor(
        _load_nodes, folders, queue, sockets.send, metadata=options.metadata, keep_cache=options.keep_cache
    )
    api = Api(
        queue=queue,
        executor=executor,
        sockets=sockets,
        folders=folders,
        max_upload_bytes=options.max_upload_bytes,
    )
    # The thread is a daemon: nothing waits for a node when the process ends.
    worker = threading.Thread(target=executor.run_forever, name="worker", daemon=True)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(_until_signal(), sockets.publish(), _Server(api, worker).serve(sockets=listeners))


async def _until_signal() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    raise asyncio.CancelledError


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling; the worker starts when the port answers."""

    def __init__(self, api: Api, worker: threading.Thread) -> None:
        config = uvicorn.Config(
            api.app(),
            ws="websockets-sansio",
            ws_per_message_deflate=False,  # messages are short, and rarely leave the machine
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        super().__init__(config)
        self._worker = worker

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGTERM and SIGINT to `_until_signal`: uvicorn would wait for open sockets."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then start the worker, which loads the nodes."""
        await super().startup(sockets=sockets)
        self._worker.start()

"""Who hears what: the open sockets by client id, and messages from the worker thread to them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocketDisconnect

if TYPE_CHECKING:
    from starlette.websockets import WebSocket


class Sockets:
    """The open sockets, one for each client id.

    A second socket with the same id takes over; when the first then closes, the id hears nothing more. ComfyUI does
    the same, and clients have to live with it.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, WebSocket] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._messages: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()

    async def publish(self) -> None:
        """Send what `send` was given, in its order, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            text, client_id = await self._messages.get()
            for socket in self._receivers(client_id):
                await _send_or_skip(socket, text)

    def send(self, event: str, data: dict[str, Any], client_id: str | None = None) -> None:
        """Queue one message for a client, or for every socket where `client_id` is None. Safe from any thread."""
        if self._loop is None:
            return  # nobody can have connected yet
        text = to_text(event, data)
        self._loop.call_soon_threadsafe(self._messages.put_nowait, (text, client_id))

    def add(self, client_id: str, socket: WebSocket) -> None:
        """Address messages for this client to this socket."""
        self._sockets[client_id] = socket

    def remove(self, client_id: str) -> None:
        """Address nothing more to this client."""
        self._sockets.pop(client_id, None)

    def _receivers(self, client_id: str | None) -> list[WebSocket]:
        if client_id is None:
            return list(self._sockets.values())
        return [self._sockets[client_id]] if client_id in self._sockets else []


def to_text(event: str, data: dict[str, Any]) -> str:
    """A message as it goes over the wire."""
    return json.dumps({"type": event, "data": data})


async def _send_or_skip(socket: WebSocket, text: str) -> None:
    try:
        await socket.send_text(text)
    except (WebSocketDisconnect, RuntimeError):
        return  # closed meanwhile; its own handler takes it out

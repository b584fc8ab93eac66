"""Who hears what: the open sockets by client id, and messages from the worker thread to them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
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
        self._messages: deque[tuple[str, str | None]] = deque()
        self._wake = asyncio.Event()
        self._woken = False

    async def publish(self) -> None:
        """Send what `send` was given, in its order, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._woken = False  # before the queue is emptied: who queues a message after that wakes us again
            while self._messages:
                text, client_id = self._messages.popleft()
                for socket in self._receivers(client_id):
                    await _send_or_skip(socket, text)

    def send(self, event: str, data: dict[str, Any], client_id: str | None = None) -> None:
        """Queue one message for a client, or for every socket where `client_id` is None. Safe from any thread."""
        if self._loop is None:
            return  # nobody can have connected yet
        self._messages.append((to_text(event, data), client_id))
        if not self._woken:  # one wake-up, which costs a system call, serves all messages that come before it is heard
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake.set)

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

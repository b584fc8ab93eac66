"""The HTTP routes, each with and without the prefix `/api`, as ComfyUI 0.3.64 answers them."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from function.engine.embedded.errors import MalformedPromptError
from function.engine.embedded.files import Files
from function.engine.embedded.nodes.node import describe
from function.engine.embedded.prompts import QueuedPrompt
from function.engine.embedded.sockets import to_text
from function.engine.embedded.system import system_stats
from function.engine.embedded.validation import validate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

    from function.engine.embedded.executor import Executor
    from function.engine.embedded.folders import Folders
    from function.engine.embedded.prompts import PromptQueue
    from function.engine.embedded.sockets import Sockets

    Handler = Callable[[Request], Awaitable[Response]]

_BROKEN = "500 Internal Server Error\n\nServer got itself in trouble"


class Api:
    """The routes around one queue.

    Args:
        queue: Where accepted prompts go.
        executor: What runs them.
        sockets: Who hears about them.
        folders: Where files are.
        max_upload_bytes: Larger bodies are refused with 413.
    """

    def __init__(
        self, *, queue: PromptQueue, executor: Executor, sockets: Sockets, folders: Folders, max_upload_bytes: int
    ) -> None:
        self._queue = queue
        self._executor = executor
        self._sockets = sockets
        self._folders = folders
        self._features = {"supports_preview_metadata": True, "max_upload_size": max_upload_bytes}
        self._max_upload_bytes = max_upload_bytes
        self._number = 0

    def app(self) -> ASGIApp:
        """The application: all routes behind the origin check."""
        files = Files(self._folders, self._read_body)
        gets: dict[str, Handler] = {
            "/prompt": self._get_prompt,
            "/queue": self._get_queue,
            "/history": self._get_history,
            "/history/{prompt_id}": self._get_history_entry,
            "/object_info": self._get_object_info,
            "/object_info/{node_class}": self._get_object_info,
            "/system_stats": self._get_system_stats,
            "/features": self._get_features,
            "/models": self._get_models,
            "/models/{folder}": self._get_model_names,
            "/embeddings": self._get_embeddings,
            "/view": files.view,
        }
        posts: dict[str, Handler] = {
            "/prompt": self._post_prompt,
            "/queue": self._post_queue,
            "/history": self._post_history,
            "/interrupt": self._post_interrupt,
            "/free": self._post_free,
            "/upload/image": files.upload,
        }
        routes: list[Route | WebSocketRoute] = []
        for prefix in ("", "/api"):
            routes += [Route(prefix + path, handler, methods=["GET"]) for path, handler in gets.items()]
            routes += [Route(prefix + path, handler, methods=["POST"]) for path, handler in posts.items()]
            routes.append(WebSocketRoute(f"{prefix}/ws", self._socket))
        handlers = {HTTPException: _empty_answer, MalformedPromptError: _broken_answer}
        return _same_origin_only(Starlette(routes=routes, exception_handlers=handlers))  # type: ignore[arg-type]  # (starlette types handlers by the base class)

    async def _read_body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_upload_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return bytes(body)

    async def _read_json(self, request: Request) -> dict[str, Any]:
        try:
            value = json.loads(await self._read_body(request))
        except ValueError as error:
            raise MalformedPromptError("the body is not JSON") from error
        if not isinstance(value, dict):
            raise MalformedPromptError("the body is no JSON object")
        return value

    async def _get_prompt(self, _: Request) -> Response:
        return _json(self._queue.info())

    async def _post_prompt(self, request: Request) -> Response:
        body = await self._read_json(request)
        number = self._take_number(body)
        if "prompt" not in body:
            error = {"type": "no_prompt", "message": "No prompt provided", "details": "No prompt provided"}
            return _json({"error": error | {"extra_info": {}}, "node_errors": {}}, HTTPStatus.BAD_REQUEST)
        targets = body.get("partial_execution_targets")
        verdict = validate(body["prompt"], self._executor.nodes(), self._folders, targets=targets)
        if verdict.error is not None:
            refusal = {"error": verdict.error, "node_errors": verdict.node_errors}
            return _json(refusal, HTTPStatus.BAD_REQUEST)
        item = _queued(body, number, verdict.outputs)
        answer = {"prompt_id": item.prompt_id, "number": number, "node_errors": verdict.node_errors}
        self._queue.put(item)
        return _json(answer)

    def _take_number(self, body: dict[str, Any]) -> float:
        """The place in the queue: the caller's, or one after the last, negative for the front."""
        if "number" in body:
            try:
                return float(body["number"])
            except (TypeError, ValueError) as error:
                raise MalformedPromptError("the number is no number") from error
        number = self._number
        self._number += 1
        return -number if body.get("front") else number

    async def _get_queue(self, _: Request) -> Response:
        return _json(self._queue.snapshot())

    async def _post_queue(self, request: Request) -> Response:
        body = await self._read_json(request)
        if body.get("clear"):
            self._queue.clear()
        self._queue.delete(set(body.get("delete", ())))
        return Response()

    async def _post_interrupt(self, request: Request) -> Response:
        with suppress(MalformedPromptError):
            prompt_id = (await self._read_json(request)).get("prompt_id")
            if prompt_id and not self._queue.is_running(prompt_id):
                return Response()
        self._executor.interrupt()
        return Response()

    async def _post_free(self, request: Request) -> Response:
        body = await self._read_json(request)
        if body.get("free_memory"):
            self._queue.free_memory()
        return Response()

    async def _get_history(self, request: Request) -> Response:
        query = request.query_params
        max_items = int(query["max_items"]) if query.get("max_items", "").isdigit() else None
        offset = int(query["offset"]) if query.get("offset", "").isdigit() else -1
        return _json(self._queue.history(max_items=max_items, offset=offset))

    async def _get_history_entry(self, request: Request) -> Response:
        return _json(self._queue.entry(request.path_params["prompt_id"]))

    async def _post_history(self, request: Request) -> Response:
        body = await self._read_json(request)
        if body.get("clear"):
            self._queue.forget_all()
        self._queue.forget(set(body.get("delete", ())))
        return Response()

    async def _get_object_info(self, request: Request) -> Response:
        wanted = request.path_params.get("node_class")
        nodes = self._executor.nodes()
        return _json({name: describe(nodes[name], self._folders) for name in nodes if wanted in {None, name}})

    async def _get_system_stats(self, _: Request) -> Response:
        return _json(system_stats())

    async def _get_features(self, _: Request) -> Response:
        return _json(self._features)

    async def _get_models(self, _: Request) -> Response:
        return _json(list(self._folders.models))

    async def _get_model_names(self, request: Request) -> Response:
        folder = request.path_params["folder"]
        if folder not in self._folders.models:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _json(self._folders.model_names(folder))

    async def _get_embeddings(self, _: Request) -> Response:
        names = self._folders.model_names("embeddings")
        return _json([name.rsplit(".", 1)[0] for name in names])

    async def _socket(self, socket: WebSocket) -> None:
        client_id = socket.query_params.get("clientId") or uuid.uuid4().hex
        await socket.accept()
        self._sockets.add(client_id, socket)
        try:
            await self._greet(socket, client_id)
            await self._listen(socket)
        except WebSocketDisconnect:
            pass
        finally:
            self._sockets.remove(client_id)

    async def _greet(self, socket: WebSocket, client_id: str) -> None:
        await socket.send_text(to_text("status", {"status": self._queue.info(), "sid": client_id}))
        if (node_id := self._executor.running_node(client_id)) is not None:
            await socket.send_text(to_text("executing", {"node": node_id}))

    async def _listen(self, socket: WebSocket) -> None:
        first = await socket.receive_text()
        if _message_type(first) == "feature_flags":
            await socket.send_text(to_text("feature_flags", self._features))
        while True:
            await socket.receive_text()


def _queued(body: dict[str, Any], number: float, outputs: tuple[str, ...]) -> QueuedPrompt:
    extra_data = dict(body.get("extra_data") or {})
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    prompt_id = str(body.get("prompt_id", uuid.uuid4()))
    return QueuedPrompt(number, prompt_id, body["prompt"], extra_data, outputs)


def _message_type(text: str) -> object:
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message.get("type") if isinstance(message, dict) else None


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(json.dumps(value), status_code=status, media_type="application/json; charset=utf-8")


async def _empty_answer(_: Request, error: HTTPException) -> Response:
    return Response(status_code=error.status_code, headers=error.headers)


async def _broken_answer(_: Request, __: MalformedPromptError) -> Response:
    return Response(_BROKEN, status_code=HTTPStatus.INTERNAL_SERVER_ERROR, media_type="text/plain")


def _same_origin_only(app: ASGIApp) -> ASGIApp:
    """Refuse what a page of another site makes a browser send: ComfyUI's rule, 403 without a body."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_foreign(dict(scope["headers"])):
            await Response(status_code=HTTPStatus.FORBIDDEN)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return checked


def is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that another site's page sent this. Asked on loopback only, as ComfyUI does."""
    if headers.get(b"sec-fetch-site") == b"cross-site":
        return True
    if b"host" not in headers or b"origin" not in headers:
        return False
    try:
        host = urlsplit("//" + headers[b"host"].decode("latin-1").lower())
        origin = urlsplit(headers[b"origin"].decode("latin-1").lower())
        wanted = host.hostname if origin.port is None else host.netloc
    except ValueError:  # no address at all
        return True
    return _is_loopback(host.hostname) and wanted != origin.netloc


def _is_loopback(hostname: str | None) -> bool:
    try:
        return hostname == "localhost" or ip_address(hostname or "").is_loopback
    except ValueError:
        return False

"""The routes about files: `/view` sends one, `/upload/image` takes one."""

from __future__ import annotations

import mimetypes
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from function.engine.embedded.folders import inside_or_none
from function.engine.embedded.multipart import Part, parse_multipart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from starlette.requests import Request

    from function.engine.embedded.folders import Folders

_ACTIVE_TYPES = frozenset({"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"})
"""Types that a browser would run from this origin; sent as plain bytes instead."""


class Files:
    """Routes over the input, output and temp directories; a path that leads outside is refused with 400.

    Args:
        folders: The directories.
        read_body: Reads a request's body within its limit.
    """

    def __init__(self, folders: Folders, read_body: Callable[[Request], Awaitable[bytes]]) -> None:
        self._folders = folders
        self._read_body = read_body

    async def view(self, request: Request) -> Response:
        """Send one file, as a whole or a range of it."""
        query = request.query_params
        if "filename" not in query:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        if query["filename"].startswith("/") or ".." in query["filename"]:
            raise HTTPException(HTTPStatus.BAD_REQUEST)
        directory = self._directory(query.get("type", "output"), query.get("subfolder", ""))
        path = inside_or_none(directory, query["filename"].rsplit("/", 1)[-1])
        if path is None or not path.is_file():
            raise HTTPException(HTTPStatus.NOT_FOUND)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        safe = "application/octet-stream" if kind in _ACTIVE_TYPES else kind
        return FileResponse(path, media_type=safe, filename=path.name, content_disposition_type="inline")

    async def upload(self, request: Request) -> Response:
        """Keep one image; a file of the same name stays unless `overwrite` says so."""
        try:
            parts = parse_multipart(request.headers.get("content-type", ""), await self._read_body(request))
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST) from error
        image = parts.get("image")
        if image is None or not image.filename:
            raise HTTPException(HTTPStatus.BAD_REQUEST)
        place, subfolder = _text(parts, "type", "input"), _text(parts, "subfolder", "")
        directory = self._directory(place, subfolder)
        directory.mkdir(parents=True, exist_ok=True)
        path = _target(directory, image, overwrite=_text(parts, "overwrite", "") in {"true", "1"})
        path.write_bytes(image.content)
        return JSONResponse({"name": path.name, "subfolder": subfolder, "type": place})

    def _directory(self, place: str, subfolder: str) -> Path:
        root = self._folders.directory(place)
        inside = root if root is None or not subfolder else inside_or_none(root, subfolder)
        if inside is None:
            raise HTTPException(HTTPStatus.BAD_REQUEST)
        return inside


def _text(parts: Mapping[str, Part], name: str, default: str) -> str:
    return parts[name].content.decode() if name in parts else default


def _target(directory: Path, image: Part, *, overwrite: bool) -> Path:
    """Where an upload goes: its own name if that is free or holds the same bytes, else `name (1).ext` and so on."""
    path = inside_or_none(directory, image.filename or "")
    if path is None or path.parent != directory:
        raise HTTPException(HTTPStatus.BAD_REQUEST)
    candidate, count = path, 0
    while not overwrite and candidate.exists() and candidate.read_bytes() != image.content:
        count += 1
        candidate = path.with_name(f"{path.stem} ({count}){path.suffix}")
    return candidate

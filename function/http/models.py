"""`GET /models` and `POST /download`: the models of this pod, as clients of comfyui-api know them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from function.credentials import parse_credentials
from function.errors import InvalidRequestError
from function.http.bodies import parse_json, read_body
from function.http.responses import check_json, json_response
from function.job import validated
from function.models.listing import list_models, model_folders, modern_folder
from function.sources import is_url, parse_source_url

if TYPE_CHECKING:
    from flask import Request, Response

    from function.credentials import UrlCredential
    from function.lifecycle import Function
    from function.models.references import ModelRef
    from function.sources import SourceUrl

_MAX_BODY_BYTES = 65_536


class DownloadRequest(BaseModel):
    """The body of `POST /download`."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    url: str = Field(
        min_length=1, repr=False, description="An `s3://` or `https://` URL, or the name of a file below MODELS_URL."
    )
    model_type: str = Field(description="The model folder, for example `checkpoints`.")
    filename: str = Field(default="", description="Its name in the folder; default: the last part of the URL's path.")
    wait: bool = Field(default=False, description="Whether to answer when the file is there.")
    auth: dict[str, Any] | None = Field(
        default=None, repr=False, description="What requests to the URL's host carry, as in MODEL_URL_CREDENTIALS."
    )


def show(function: Function, _request: Request) -> Response:
    """File names by folder: what the engine can use now."""
    return json_response(list_models(function.settings.model_dir))


def download(function: Function, request: Request) -> Response:
    """Bring one model into the cache: 200 when it is there, or 202 at once, and the log says how it ended."""
    check_json(request)
    body = read_body(request, max_bytes=min(_MAX_BODY_BYTES, function.settings.max_body_bytes))
    wanted = validated(DownloadRequest, parse_json(body))
    reference = _reference(function, wanted)
    answer = {"url": wanted.url, "model_type": reference.folder, "filename": reference.filename}
    if not wanted.wait:
        function.line.background.begin(reference)
        return json_response({**answer, "status": "started"}, status=202)
    began = time.monotonic()
    size_bytes = function.line.background.download(reference)
    duration = round(time.monotonic() - began, 3)
    return json_response({**answer, "status": "completed", "size": size_bytes, "duration": duration})


def _reference(function: Function, wanted: DownloadRequest) -> ModelRef:
    """The file that is meant, with a name that stays in its folder, from a place that is allowed."""
    folder = modern_folder(wanted.model_type)
    folders = model_folders(function.settings.model_dir)
    if folder not in folders:
        raise InvalidRequestError(f"model_type: there is no such model folder; there are {', '.join(folders)}")
    if not is_url(wanted.url):
        return function.line.lookup.named(folder, _key_name(folder, wanted))
    url = _parse_url(wanted.url)
    return function.line.lookup.named(
        folder, wanted.filename or url.filename, source_url=wanted.url, credentials=_credentials(url, wanted.auth)
    )


def _key_name(folder: str, wanted: DownloadRequest) -> str:
    name = wanted.url.removeprefix(f"{folder}/")
    if wanted.auth is not None or wanted.filename not in {"", name}:
        raise InvalidRequestError("url: a file below MODELS_URL keeps its name and takes no auth")
    return name


def _parse_url(text: str) -> SourceUrl:
    try:
        return parse_source_url(text)
    except ValueError as error:
        raise InvalidRequestError(f"url: {error}") from None


def _credentials(url: SourceUrl, auth: dict[str, Any] | None) -> tuple[UrlCredential, ...]:
    """What came with the request, for this host alone: a redirect to another one does not get it."""
    if auth is None:
        return ()
    try:
        found = parse_credentials([{"url_pattern": f"{url.origin}/**", "auth": auth}])
    except ValueError:
        raise InvalidRequestError(
            "auth: expected type bearer (token), basic (username, password), header (header_name, header_value), "
            "query (query_param, query_value) or s3 (access_key_id, secret_access_key)"
        ) from None
    if not found[0].matches(url):
        raise InvalidRequestError("auth: type s3 is for s3:// URLs, and for no others")
    return found

"""OpenAI's images API: a model is a template, its parameters are filled from the request's fields by name."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from function.errors import InvalidRequestError
from function.http.bodies import read_body
from function.http.openai_request import read_form_request, read_json_request, to_conversion, to_parameters
from function.http.outputs import LINK_SECONDS
from function.http.responses import check_json, json_response
from function.http.submitting import completed, identify
from function.job import Job
from function.outputs.stored import output_key, with_data
from function.streamed import DocumentWithFiles

if TYPE_CHECKING:
    from flask import Request, Response

    from function.http.openai_request import ImageRequest
    from function.job import JobResult, Output
    from function.lifecycle import Function


def show_models(function: Function, _request: Request) -> Response:
    """Every template as a model."""
    return json_response({"object": "list", "data": [_model(name) for name in function.templates.names()]})


def show_model(function: Function, _request: Request, name: str) -> Response:
    """One template as a model."""
    return json_response(_model(function.templates.get(name).name))


def generate(function: Function, request: Request) -> Response:
    """Images from words."""
    check_json(request)
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        identity = identify(request, body)
        wanted = read_json_request(body)
        return _answer(function, request, wanted, identity)


def edit(function: Function, request: Request) -> Response:
    """Images from an image and words, perhaps with a mask; a variation is an edit without words."""
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        identity = identify(request, body)
        wanted = read_form_request(body.take(), request.headers.get("Content-Type", ""))
        return _answer(function, request, wanted, identity)


def _answer(function: Function, request: Request, wanted: ImageRequest, identity: tuple[str, str]) -> Response:
    job_id, digest = identity
    template = function.templates.get(wanted.model)
    filled = function.templates.fill(template.name, to_parameters(wanted, template), job_id=job_id)
    inline = wanted.response_format == "b64_json"
    job = Job(
        job_id=job_id,
        workflow=filled.workflow,
        stored=not inline or bool(digest),
        interactive=True,
        request_sha256=digest,
        preloads=filled.preloads,
        convert_output=to_conversion(wanted, template),
    )
    result = completed(function, job, request)
    images = [output for output in result.outputs if output.media_type.startswith("image/")]
    if not images:
        raise InvalidRequestError(f"the model {template.name} makes no images", details={"param": "model"})
    before = {"created": int(datetime.fromisoformat(result.finished_at).timestamp())}
    if inline:
        files = [_data(function, result, image) for image in images]
        return json_response(DocumentWithFiles(before, "data", files, {}, wrapped="b64_json"))
    return json_response({**before, "data": [{"url": _link(function, request, result, image)} for image in images]})


def _data(function: Function, result: JobResult, image: Output) -> bytes:
    return image.data or with_data(function.jobs.results, result, image).data or b""


def _link(function: Function, request: Request, result: JobResult, image: Output) -> str:
    """Where the file can be fetched: at S3 with a link that expires, else here."""
    key = output_key(result.job_id, result.attempt, image)
    link = function.links.presign(key, expires_seconds=LINK_SECONDS)
    return link if "://" in link else request.url_root + quote(key)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "comfyfn"}

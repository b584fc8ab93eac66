"""`GET /openapi.json`: what this function takes and answers, from the models that check its requests."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from function import __version__
from function.errors import ComfyfnError
from function.http.access import is_open
from function.http.answer_models import Error, OpenAIError
from function.http.openai_errors import is_openai_path
from function.http.operations import ERRORS, OPERATIONS, RETRIED, Answer, Operation
from function.http.responses import json_response
from function.http.routes import ROUTES
from function.templates.template import to_json_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flask import Request, Response
    from pydantic import BaseModel

    from function.config import Settings
    from function.lifecycle import Function
    from function.templates.template import Template

_log = logging.getLogger("comfyfn")

_SCHEMA = "#/components/schemas/{model}"
_SHOWN_TEMPLATES = 50
_TEMPLATE_PATH = "/workflow/{name}"


def show(function: Function, _request: Request) -> Response:
    """The OpenAPI document of this function, with the parameters of its templates."""
    return json_response(to_document(function.settings, list(_templates(function))))


def to_document(settings: Settings, templates: Iterable[Template] = ()) -> dict[str, Any]:
    """OpenAPI 3.1; a template is a path of its own beside the one of all templates."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, room in routes():
        operation = {"operationId": _id(method, path), **_operation(OPERATIONS[method, path], path)}
        if settings.api_tokens and not is_open(settings, room):
            operation["security"] = [{"token": []}]
            operation["responses"]["401"] = _error(401, path)
        paths.setdefault(path, {})[method.lower()] = operation
    for template in templates:
        paths[f"/workflow/{template.name}"] = _of_template(paths[_TEMPLATE_PATH], template)
    components: dict[str, Any] = {"schemas": _schemas()}
    if settings.api_tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    info = {
        "title": "comfyfn",
        "version": __version__,
        "description": "ComfyUI workflows as a serverless function. Every answer has an `X-Request-Id`.",
    }
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def routes() -> Iterator[tuple[str, str, str]]:
    """Method, path as OpenAPI writes it, and room of every route."""
    for rule in ROUTES.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD"}):
            yield method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule), rule.endpoint[0]


def _templates(function: Function) -> Iterator[Template]:
    try:
        for name in function.templates.names()[:_SHOWN_TEMPLATES]:
            try:
                yield function.templates.get(name)
            except ComfyfnError as error:
                _log.info("openapi: %s", error.message)
    except ComfyfnError as error:  # storage is away: the rest is worth being told all the same
        _log.warning("openapi: the templates are left out: %s", error.message)


def _operation(operation: Operation, path: str) -> dict[str, Any]:
    members: dict[str, Any] = {"summary": operation.summary}
    if operation.parameters:
        members["parameters"] = [
            {"in": place, "name": name, "required": place == "path", "schema": schema}
            for (place, name), schema in operation.parameters.items()
        ]
    if operation.body:
        example = {"example": operation.example} if operation.example else {}
        content = {media_type: {"schema": _schema(operation.body)} | example for media_type in operation.body_types}
        members["requestBody"] = {"required": True, "content": content}
    errors = {str(status): _error(status, path) for status in sorted({500, *operation.errors})}
    return members | {"responses": errors | {str(code): _answer(one) for code, one in operation.answers.items()}}


def _answer(answer: Answer) -> dict[str, Any]:
    members: dict[str, Any] = {"description": answer.text, "headers": _headers(answer.headers)}
    if answer.media_type:
        schema = _schema(answer.schema) if answer.schema else {}
        files: dict[str, Any] = {media_type: {} for media_type in answer.file_types}
        members["content"] = {answer.media_type: {"schema": schema}} | files
    if answer.links:
        parameters = {"job_id": "$response.body#/job_id"}
        members["links"] = {name: {"operationId": name, "parameters": parameters} for name in answer.links}
    return members


def _error(status: int, path: str) -> dict[str, Any]:
    schema = OpenAIError if is_openai_path(path) else Error
    headers = {"Retry-After": "Seconds until it may be better."} if status in RETRIED else {}
    return _answer(Answer(ERRORS[status], schema, headers=headers))


def _headers(described: Any) -> dict[str, Any]:  # noqa: ANN401  (names and texts)
    all_headers = {"X-Request-Id": "The request's own, or one of ours.", **described}
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in all_headers.items()}


def _schema(source: type[BaseModel] | dict[str, Any]) -> dict[str, Any]:
    return source if isinstance(source, dict) else {"$ref": _SCHEMA.format(model=source.__name__)}


def _schemas() -> dict[str, Any]:
    """The JSON schemas of all models."""
    used: list[type[BaseModel]] = [Error, OpenAIError]
    for operation in OPERATIONS.values():
        sources = [operation.body, *(answer.schema for answer in operation.answers.values())]
        used += [source for source in sources if isinstance(source, type)]
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(used)], ref_template=_SCHEMA, title=None
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _of_template(path: dict[str, Any], template: Template) -> dict[str, Any]:
    """The path of one template: that of all templates, with its own parameters."""
    own = {name: value for name, value in to_json_schema(template).items() if name not in {"$schema", "title"}}
    members = {"id": {"type": "string", "maxLength": 256}, "input": own}
    schema = {"type": "object", "properties": members}  # without `input`, parameters are members beside it
    found = {method: _without_name(operation, template) for method, operation in path.items()}
    found["post"] |= {
        "summary": template.description or f"Run the template {template.name}",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
    }
    return found


def _without_name(operation: dict[str, Any], template: Template) -> dict[str, Any]:
    parameters = [parameter for parameter in operation["parameters"] if parameter["in"] != "path"]
    return operation | {"operationId": f"{operation['operationId']}.{template.name}", "parameters": parameters}


def _id(*parts: str) -> str:
    """What generators of clients call a function."""
    return re.sub(r"[\W_]+", "_", "_".join(parts).lower()).strip("_")

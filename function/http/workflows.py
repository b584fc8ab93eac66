"""`/workflow`: templates by name, run as `POST /prompt` runs a workflow.

comfyui-api takes the parameters in `input`. Without it they may stand in the body itself, beside the fields that
`POST /prompt` has too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from function.answers import shown_workflow
from function.errors import InvalidRequestError
from function.http.bodies import parse_json, read_body
from function.http.prompt import answer, located
from function.http.prompt_request import ClientRequest, ignored_fields
from function.http.responses import check_json, json_response
from function.http.submitting import identify, read_job
from function.job import validated
from function.templates.template import to_json_schema

if TYPE_CHECKING:
    from flask import Request, Response

    from function.job import FilledTemplate
    from function.lifecycle import Function


class WorkflowRequest(ClientRequest):
    """The request body; without `input`, what it does not name is a parameter."""

    model_config = ConfigDict(extra="allow", strict=True)

    input: dict[str, Any] | None = Field(default=None, description="The parameters, by name.")

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return (self.model_extra or {}) if self.input is None else self.input


def show_names(function: Function, _request: Request) -> Response:
    """The templates there are."""
    return json_response({"workflows": function.templates.names()})


def show(function: Function, _request: Request, name: str) -> Response:
    """What one template is for and what it takes."""
    template = function.templates.get(name)
    parameters = {
        parameter_name: parameter.model_dump(exclude_unset=True)
        for parameter_name, parameter in template.parameters.items()
    }
    return json_response(
        {
            "name": template.name,
            "description": template.description,
            "parameters": parameters,
            "upload": template.upload,
            "schema": to_json_schema(template),
        }
    )


def run(function: Function, request: Request, name: str) -> Response:
    """Run a template as `POST /prompt` runs a workflow; the answer also has every parameter's value, in `input`."""
    check_json(request)
    with function.admitted(), located("input"):
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        document = parse_json(body)
        wanted = validated(WorkflowRequest, document)
        identity = identify(request, body)
        filled = _filled(function, name, wanted, job_id=identity[0])
        job, warnings = read_job(
            request,
            identity,
            wanted,
            filled.workflow,
            settings=function.settings,
            preloads=filled.preloads,
            shown={"input": shown_workflow(filled.parameters)},
        )
        return answer(function, request, job, warnings=[*_ignored(document, wanted), *warnings])


def _filled(function: Function, name: str, wanted: WorkflowRequest, *, job_id: str) -> FilledTemplate:
    try:
        return function.templates.fill(name, wanted.parameters, job_id=job_id)
    except InvalidRequestError as error:
        error.details.setdefault("location", "input")
        raise


def _ignored(document: dict[str, Any], wanted: WorkflowRequest) -> list[str]:
    parameters = {} if wanted.input is not None else wanted.parameters
    known = {name: value for name, value in document.items() if name not in parameters}
    return list(ignored_fields(known, wanted))

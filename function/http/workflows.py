"""`/workflow`: templates by name, run as `POST /prompt` runs a workflow.

comfyui-api takes the parameters in `input`. Beside it they may stand in the body itself, where `id` and `input` are
not parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from function.errors import InvalidRequestError
from function.http.bodies import parse_json, read_body
from function.http.prompt import answer
from function.http.responses import json_response
from function.http.submitting import identify, read_job
from function.job import validated
from function.templates.template import to_json_schema

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function


class WorkflowRequest(BaseModel):
    """The request body; what it does not name is a parameter."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[str, Field(max_length=256, description="The caller's own name for the job.")] = ""
    input: dict[str, Any] = Field(default_factory=dict, description="The parameters, by name.")

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters.

        Raises:
            InvalidRequestError: One is given in the body and in `input`.
        """
        beside = self.model_extra or {}
        if twice := beside.keys() & self.input.keys():
            raise InvalidRequestError(f"{min(twice)!r} is given in the body and in input; leave one")
        return {**beside, **self.input}


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
    with function.admitted():
        body = read_body(request, max_bytes=function.settings.max_body_bytes)
        wanted = validated(WorkflowRequest, parse_json(body))
        identity = identify(request, body)
        filled = function.templates.fill(name, wanted.parameters, job_id=identity[0])
        job = read_job(request, identity, filled.workflow, label=wanted.id, preloads=filled.preloads)
        return answer(function, request, job, input=filled.parameters)

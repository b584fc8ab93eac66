"""What can be said of a template beside its own file: would the engine take what its parameters take? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from function.errors import InvalidWorkflowError
from function.file_inputs import is_media
from function.templates.parameter import MEDIA_TYPES
from function.validation.graph import check_graph
from function.workflow import find_input, replace_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.templates.parameter import Parameter
    from function.templates.template import Template
    from function.validation.definitions import Definitions
    from function.workflow import Workflow


def with_defaults(template: Template) -> Workflow:
    """The workflow with every default in it; what must be given stays as the file has it."""
    workflow = template.workflow
    for parameter in template.parameters.values():
        if not parameter.required and not parameter.random:
            workflow = _with_value(workflow, parameter, parameter.default)
    return workflow


def problems_with_nodes(template: Template, definitions: Definitions) -> Iterator[str]:
    """What the engine would refuse: the workflow with its defaults, or with a bound or a choice in the place of one."""
    workflow = with_defaults(template)
    if refusal := _refusal(workflow, definitions):
        yield refusal
        return
    for name, parameter in template.parameters.items():
        for value in _extremes(parameter):
            if refusal := _refusal(_with_value(workflow, parameter, value), definitions):
                yield f"{name} = {value}: {refusal}"


def unstaged_media(template: Template) -> list[str]:
    """Parameters that take a file, for nodes to which the names of uploads mean nothing: only data URIs reach them."""
    return [
        name
        for name, parameter in template.parameters.items()
        if parameter.type in MEDIA_TYPES
        and not all(is_media(*_place(template.workflow, path)) for path in parameter.inputs)
    ]


def _place(workflow: Workflow, path: str) -> tuple[str, str]:
    node_id, input_name = find_input(workflow, path)
    return workflow[node_id]["class_type"], input_name


def _with_value(workflow: Workflow, parameter: Parameter, value: object) -> Workflow:
    return replace_inputs(workflow, {find_input(workflow, path): value for path in parameter.inputs})


def _extremes(parameter: Parameter) -> list[Any]:
    bounds = [bound for bound in (parameter.minimum, parameter.maximum) if bound is not None]
    return [*bounds, *(parameter.choices or [])]


def _refusal(workflow: Workflow, definitions: Definitions) -> str:
    try:
        check_graph(workflow, definitions)
    except InvalidWorkflowError as error:
        return error.message
    return ""

"""A template: read from its file, shown as a schema, filled with values. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from function.errors import InvalidRequestError, InvalidWorkflowError, TemplateInvalidError
from function.file_inputs import MEDIA_INPUTS
from function.job import FilledTemplate, validated
from function.storage.objects import is_key
from function.templates.parameter import LARGEST_RANDOM, MEDIA_TYPES, OneLine, Parameter
from function.workflow import find_input, is_link, parse_workflow, replace_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from function.workflow import Workflow

_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
_SHOWN_NAMES = 20
_SHOWN_CHARACTERS = 64
_TYPES = {bool: "boolean", int: "number", float: "number", str: "string"}


class TemplateFile(BaseModel):
    """The JSON file of a template."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workflow: dict[str, Any] = Field(description="The workflow in ComfyUI's API format.")
    description: OneLine = Field(default="", description="One line for people.")
    parameters: dict[Annotated[str, Field(pattern=_NAME_PATTERN)], Parameter] = Field(
        default_factory=dict, description="What may be given, by name."
    )
    preloads: list[str] = Field(
        default_factory=list,
        description="Models that must be there and that the workflow does not name: keys below MODELS_URL.",
    )
    upload: str | None = Field(
        default=None,
        description="The parameter that an uploaded object fills; default: the only image, mask, video or audio.",
    )


@dataclass(frozen=True, slots=True)
class Template:
    """A named workflow with parameters.

    Attributes:
        name: What people call it by.
        workflow: The graph, checked by `workflow.parse_workflow`.
        parameters: By name; each fills inputs that the graph has.
        description: One line for people.
        preloads: Keys of models that the graph does not name.
        upload: The parameter that an uploaded object fills; None: an upload can't run it.
    """

    name: str
    workflow: Workflow
    parameters: Mapping[str, Parameter]
    description: str = ""
    preloads: tuple[str, ...] = ()
    upload: str | None = None


def parse_template(data: bytes, *, name: str, where: str) -> Template:
    """Read a template's file.

    A file that is a plain workflow in API format counts as a template too: each literal of the graph is a parameter
    with that literal as its default, called by its place, for example `3.seed`.

    Args:
        data: The file.
        name: The template's name.
        where: The file's path or URL, for messages.

    Raises:
        TemplateInvalidError: One line that names the file, everything that is wrong in it, and what would be right.
    """
    try:
        return _parse(name, _parse_json(data))
    except (InvalidRequestError, InvalidWorkflowError) as error:
        raise TemplateInvalidError(f"template {name} ({where}): {error.message}") from error


def fill_template(template: Template, values: Mapping[str, Any], *, job_id: str) -> FilledTemplate:
    """Put values into a template's workflow: all of them, or none.

    Args:
        template: The template.
        values: By parameter; one that is missing gets its default.
        job_id: A random number is drawn from it, so that a job has the same one however often it is delivered.

    Raises:
        InvalidRequestError: One line with every problem; values are not repeated.
    """
    if problems := list(_problems(template, values)):
        raise InvalidRequestError(f"template {template.name}: {'; '.join(problems)}")
    chosen = {
        name: parameter.clean(values[name]) if name in values else _default(name, parameter, job_id)
        for name, parameter in template.parameters.items()
    }
    replacements = {
        find_input(template.workflow, path): chosen[name]
        for name, parameter in template.parameters.items()
        for path in parameter.inputs
    }
    return FilledTemplate(replace_inputs(template.workflow, replacements), chosen, template.preloads)


def to_json_schema(template: Template) -> dict[str, Any]:
    """JSON Schema of a template's parameters as one object."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": template.name,
        "description": template.description,
        "type": "object",
        "properties": {name: parameter.to_json_schema() for name, parameter in template.parameters.items()},
        "required": [name for name, parameter in template.parameters.items() if parameter.required],
        "additionalProperties": False,
    }
    return schema


def shown_names(names: list[str]) -> str:
    """Names for a message: not more than people read."""
    shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    return f"there are {shown}" if names else "there are none"


def _parse_json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the file is not JSON") from error


def _parse(name: str, document: object) -> Template:
    if not _is_template_file(document):
        return _of_plain_workflow(name, parse_workflow(document))
    file = validated(TemplateFile, document)
    workflow = parse_workflow(file.workflow)
    if problems := [*_problems_of_inputs(file, workflow), *_problems_of_file(file)]:
        raise InvalidRequestError("; ".join(problems))
    return Template(
        name=name,
        workflow=workflow,
        parameters=file.parameters,
        description=file.description,
        preloads=tuple(file.preloads),
        upload=file.upload or _only_media(file.parameters),
    )


def _is_template_file(document: object) -> bool:
    """Whether it has a `workflow`; a plain workflow might have a node of that id."""
    inner = document.get("workflow") if isinstance(document, dict) else None
    return inner is not None and not (isinstance(inner, dict) and "class_type" in inner)


def _of_plain_workflow(name: str, workflow: Workflow) -> Template:
    parameters = {
        f"{node_id}.{input_name}": Parameter.model_validate(
            {"input": f"{node_id}.{input_name}", "type": _type(node["class_type"], input_name, value), "default": value}
        )
        for node_id, node in workflow.items()
        for input_name, value in node["inputs"].items()
        if type(value) in _TYPES
    }
    return Template(name=name, workflow=workflow, parameters=parameters, upload=_only_media(parameters))


def _type(class_type: str, input_name: str, value: object) -> str:
    """A number may be of either kind: the file does not tell, the engine will."""
    kind = MEDIA_INPUTS.get((class_type, input_name)) if value != "" else None
    if kind is None:
        return _TYPES[type(value)]
    if class_type == "LoadImageMask":
        return "mask"
    return kind if kind in MEDIA_TYPES else "string"


def _only_media(parameters: Mapping[str, Parameter]) -> str | None:
    media = [name for name, parameter in parameters.items() if parameter.type in MEDIA_TYPES]
    return media[0] if len(media) == 1 else None


def _problems_of_inputs(file: TemplateFile, workflow: Workflow) -> Iterator[str]:
    targets = Counter(path for parameter in file.parameters.values() for path in parameter.inputs)
    for name, parameter in file.parameters.items():
        for path in parameter.inputs:
            what = f"parameters.{name}.input: "
            try:
                node_id, input_name = find_input(workflow, path)
            except InvalidWorkflowError as error:
                yield what + error.message
                continue
            value = workflow[node_id]["inputs"][input_name]
            if is_link(value):
                yield f"{what}{path} is a link to node {value[0]}; name an input of that node, or put a value there"
            if targets[path] > 1:
                yield f"{what}{path} is filled twice; leave one"


def _problems_of_file(file: TemplateFile) -> Iterator[str]:
    for number, key in enumerate(file.preloads):
        if "/" not in key or "://" in key or not is_key(key):
            yield f"preloads.{number}: expected a model's key below MODELS_URL, like checkpoints/sd.safetensors"
    media = [name for name, parameter in file.parameters.items() if parameter.type in MEDIA_TYPES]
    if file.upload is not None and file.upload not in media:
        yield f"upload: expected a parameter that is an image, mask, video or audio; {shown_names(media)}"


def _problems(template: Template, values: Mapping[str, Any]) -> Iterator[str]:
    for name, parameter in template.parameters.items():
        if name not in values:
            if parameter.required:
                yield f"{name}: required, {parameter.expected}"
        elif not parameter.accepts(values[name]):
            yield f"{name}: expected {parameter.expected}"
    unknown = [name for name in values if name not in template.parameters]
    for name in unknown[:_SHOWN_NAMES]:
        yield f"{name[:_SHOWN_CHARACTERS]!r}: no such parameter"
    if unknown:
        yield shown_names(list(template.parameters))


def _default(name: str, parameter: Parameter, job_id: str) -> Any:  # noqa: ANN401  (of the parameter's type)
    if not parameter.random:
        return parameter.clean(parameter.default)
    lowest = int(parameter.minimum or 0)
    highest = LARGEST_RANDOM if parameter.maximum is None else int(parameter.maximum)
    drawn = int.from_bytes(hashlib.sha256(f"{job_id} {name}".encode()).digest())
    return lowest + drawn % (highest - lowest + 1)

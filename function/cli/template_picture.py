"""A template for people: a table of its parameters, and the graph with the places where they go. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from function.templates.parameter import MEDIA_TYPES
from function.workflow import find_input, is_link

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from function.templates.parameter import Parameter
    from function.templates.template import Template

_SHOWN_CHARACTERS = 40


def template_lines(template: Template) -> Iterator[str]:
    """What `comfyfn template show` prints."""
    yield f"{template.name}: {template.description}" if template.description else template.name
    yield ""
    header = ("parameter", "type", "default", "takes", "description")
    yield from _columns([header, *(_row(name, parameter) for name, parameter in template.parameters.items())])
    yield ""
    yield f"an uploaded object fills: {template.upload or 'nothing'}"
    if template.preloads:
        yield f"models besides those of the graph: {', '.join(template.preloads)}"
    yield ""
    yield from _graph(template)


def _row(name: str, parameter: Parameter) -> tuple[str, ...]:
    default = "(required)" if parameter.required else _shown(parameter.default)
    takes = "a file" if parameter.type in MEDIA_TYPES else parameter.expected
    return (name, parameter.type, default, takes, parameter.description)


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _graph(template: Template) -> Iterator[str]:
    """Each node with its inputs: where they come from, another node or a parameter."""
    names = {
        find_input(template.workflow, path): name
        for name, parameter in template.parameters.items()
        for path in parameter.inputs
    }
    for node_id, node in template.workflow.items():
        yield f"{node_id} {node['class_type']}"
        for input_name, value in node["inputs"].items():
            name = names.get((node_id, input_name))
            yield f"    {input_name} {_origin(template, value) if name is None else f'<== {name}'}"


def _origin(template: Template, value: Any) -> str:  # noqa: ANN401  (any JSON)
    if not is_link(value):
        return f"= {_shown(value)}"
    node = template.workflow.get(value[0], {})
    return f"<-- {value[0]} {node.get('class_type', '(there is no such node)')}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"

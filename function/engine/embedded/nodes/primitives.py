"""Nodes about plain values: numbers, texts, and showing any value."""

from __future__ import annotations

import json

from function.engine.embedded.nodes.node import Input, Node, Shown

_LARGEST = 2**63 - 1  # ComfyUI says sys.maxsize


def _pass(value: object) -> tuple[object]:
    return (value,)


def _primitive(name: str, title: str, kind: str, **options: object) -> Node:
    return Node(
        name,
        _pass,
        {"value": Input(kind, options)},
        (kind,),
        display_name=title,
        category="utils/primitive",
        module="comfy_extras.nodes_primitive",
        schema=True,
    )


def _preview(source: object) -> Shown:
    return Shown({"text": [_text(source)]})


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | None):
        return str(value)
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)


NODES = (
    _primitive("PrimitiveString", "String", "STRING", multiline=False),
    _primitive("PrimitiveStringMultiline", "String (Multiline)", "STRING", multiline=True),
    _primitive("PrimitiveInt", "Int", "INT", min=-_LARGEST, max=_LARGEST, control_after_generate=True),
    _primitive("PrimitiveFloat", "Float", "FLOAT", min=-_LARGEST, max=_LARGEST),
    _primitive("PrimitiveBoolean", "Boolean", "BOOLEAN"),
    Node(
        "PreviewAny",
        _preview,
        {"source": Input("*", {})},
        display_name="Preview Any",
        category="utils",
        module="comfy_extras.nodes_preview_any",
        is_output=True,
    ),
)

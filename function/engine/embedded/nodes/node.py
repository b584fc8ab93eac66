"""What a node is: its inputs and outputs as `/object_info` shows them, and the function that runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from function.engine.embedded.folders import Folders

COMBO = "COMBO"
MAX_SIDE = 16384
"""The largest width or height of an image that nodes accept, as in ComfyUI."""


class Progress(Protocol):
    """Tells clients how far a node is."""

    def __call__(self, value: int, maximum: int) -> None:
        """Report `value` of `maximum` steps.

        Raises:
            InterruptedRunError: Somebody interrupted the run.
        """


@dataclass(frozen=True, slots=True)
class Context:
    """What a running node may use besides its inputs.

    Attributes:
        folders: Where files are.
        progress: Tells clients how far the node is.
        prompt: The whole graph, as it is written into saved images.
        extra_pnginfo: More texts for saved images, from the request's `extra_data`.
        metadata: Whether saved images carry any text.
    """

    folders: Folders
    progress: Progress
    prompt: Mapping[str, Any]
    extra_pnginfo: Mapping[str, Any] | None
    metadata: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of an output node: what `executed` and the history show of it."""

    ui: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a node.

    Attributes:
        type: Its socket or widget type; `COMBO` for a list of choices.
        options: The widget's options as ComfyUI publishes them; None where it publishes none at all.
        choices: A combo's values, fixed or listed from the disk each time they are asked for.
    """

    type: str
    options: Mapping[str, Any] | None = None
    choices: tuple[str, ...] | Callable[[Folders], list[str]] = ()

    def values(self, folders: Folders) -> list[str]:
        """The choices of a combo at this moment."""
        return self.choices(folders) if callable(self.choices) else list(self.choices)


@dataclass(frozen=True, slots=True)
class Node:
    """One class of nodes.

    Attributes:
        name: The `class_type` of a prompt.
        run: Takes the inputs by name, after the context where `uses_context`; answers its outputs, or `Shown`.
        inputs: Required inputs in ComfyUI's order.
        outputs: Output types.
        optional: Inputs that may be missing.
        hidden: Hidden inputs, name -> kind.
        output_names: Names of the outputs where they differ from their types.
        display_name: The title in an editor; None where ComfyUI has none.
        description: One line for an editor.
        category: The menu in an editor.
        module: ComfyUI's Python module of this node.
        schema: Whether ComfyUI defines it by a schema (V3): its combos aren't checked when a prompt is posted.
        is_output: Whether a prompt may end here.
        output_tooltips: Texts for an editor.
        uses_context: Whether `run` takes the context.
        fingerprint: What the cache looks at besides the inputs, for example the content of the file an input names.
        check: Judges the inputs in `checked` when a prompt is posted, instead of the generic checks: an error or None.
        checked: Names of the inputs that `check` judges.
    """

    name: str
    run: Callable[..., tuple[Any, ...] | Shown]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    optional: Mapping[str, Input] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    output_names: tuple[str, ...] | None = None
    display_name: str | None = None
    description: str = ""
    category: str = "image"
    module: str = "nodes"
    schema: bool = False
    is_output: bool = False
    output_tooltips: tuple[str | None, ...] | None = None
    uses_context: bool = False
    fingerprint: Callable[[Folders, Mapping[str, Any]], str] | None = None
    check: Callable[[Folders, Mapping[str, Any]], str | None] | None = None
    checked: tuple[str, ...] = ()

    def all_inputs(self) -> dict[str, Input]:
        """Required inputs, then optional ones."""
        return {**self.inputs, **self.optional}


def describe(node: Node, folders: Folders) -> dict[str, Any]:
    """One entry of `/object_info`, key for key as ComfyUI 0.3.64 writes it."""
    groups = {"required": node.inputs, "optional": node.optional}
    shown: dict[str, dict[str, Any]] = {
        group: {name: _definition(node, one, folders) for name, one in inputs.items()}
        for group, inputs in groups.items()
        if inputs
    }
    if node.hidden:
        shown["hidden"] = dict(node.hidden)
    entry = {
        "input": shown,
        "input_order": {group: list(inputs) for group, inputs in shown.items()},
        "output": list(node.outputs),
        "output_is_list": [False] * len(node.outputs),
        "output_name": list(node.output_names or node.outputs),
    }
    titles = {
        "name": node.name,
        "display_name": node.display_name,
        "description": node.description,
        "python_module": node.module,
        "category": node.category,
        "output_node": node.is_output,
    }
    if node.schema:
        tooltips = {"output_tooltips": [None] * len(node.outputs)}
        return entry | tooltips | titles | {"deprecated": False, "experimental": False, "api_node": False}
    return entry | titles | ({"output_tooltips": list(node.output_tooltips)} if node.output_tooltips else {})


def _definition(node: Node, one: Input, folders: Folders) -> list[Any]:
    if one.type == COMBO and node.schema:
        return [COMBO, {"multiselect": False, "options": one.values(folders)}]
    kind = one.values(folders) if one.type == COMBO else one.type
    if node.schema:
        return [kind, dict(one.options or {})]
    return [kind] if one.options is None else [kind, dict(one.options)]


def integer(default: int, minimum: int, maximum: int, step: int | None = 1, **more: object) -> Input:
    """A whole number with its bounds."""
    options: dict[str, Any] = {"default": default, "min": minimum, "max": maximum}
    return Input("INT", options | ({} if step is None else {"step": step}) | more)


def number(default: float, minimum: float, maximum: float, step: float) -> Input:
    """A real number with its bounds."""
    return Input("FLOAT", {"default": default, "min": minimum, "max": maximum, "step": step})


def combo(*choices: str) -> Input:
    """One of these words."""
    return Input(COMBO, choices=choices)

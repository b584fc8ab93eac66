"""What ComfyUI's `/object_info` says of each node class, reduced to what a workflow may be judged by. Pure.

The engine has the last word, so whatever it might see otherwise is left out here: bounds, options and types of links of
classes that are not ComfyUI's own (their VALIDATE_INPUTS and type classes don't show), options that are files, and
inputs that V3 nodes make up while they look at the graph. Read from `execution.py` of ComfyUI 0.3.64 and 0.33.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from function.file_inputs import CUSTOM_INPUT, LOADER_INPUTS, MEDIA_INPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from function.workflow import Workflow

ANY = "*"

_CORE_MODULES = re.compile(r"nodes|comfy_extras\..+")
_MATCH_TYPE = "COMFY_MATCHTYPE_V3"
_DYNAMIC_PREFIX = "COMFY_"
_LONGEST_CHOICE = 100
_FILE_NAME = re.compile(r"[/\\]|\.[A-Za-z]\w{1,11}$")
_FILE_OPTION = re.compile(r"upload|remote|image_folder")

# Core classes that check their inputs themselves, in place of ComfyUI's bounds and options.
_SELF_CHECKING = frozenset(
    {
        "CustomCombo",
        "Load3D",
        "Load3DAdvanced",
        "LoadImageSetNode",
        "ModelAttentionBackend",
        "SelectCLIPDevice",
        "SelectModelDevice",
        "SelectVAEDevice",
    }
)
# Directories, so nothing in their names tells that they come and go.
_DIRECTORY_INPUTS = frozenset(
    {
        ("DiffusersLoader", "model_path"),
        ("LoadImageSetFromFolderNode", "folder"),
        ("LoadImageTextSetFromFolderNode", "folder"),
    }
)


@dataclass(frozen=True, slots=True)
class InputDefinition:
    """One declared input.

    Attributes:
        kind: ComfyUI's type, for example `INT`, `IMAGE` or `INT,FLOAT`; `*` where any link fits.
        required: Whether a workflow must give it.
        linked: The type that a link must fit; `*`: any, or not ours to judge.
        minimum: Smallest number it takes; None: no bound that we judge by.
        maximum: Largest number it takes; None: no bound that we judge by.
        choices: The values it takes; None: nothing that we judge by.
        listed: The texts that an input called `image` lists: they are no files to be brought.
    """

    kind: str
    required: bool
    linked: str = ANY
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    listed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeDefinition:
    """One node class.

    Attributes:
        inputs: Declared inputs by name, without hidden ones and those that V3 nodes make up.
        outputs: Type of each output slot; None: not ours to judge.
        is_output: Whether it is an output node, from which ComfyUI starts.
        lazy: Declared inputs whose links are followed only when the node asks for them.
        hides_lazy: Whether inputs that it does not declare may be lazy too.
    """

    inputs: Mapping[str, InputDefinition]
    outputs: tuple[str, ...] | None
    is_output: bool
    lazy: frozenset[str] = frozenset()
    hides_lazy: bool = False

    def awaits(self, name: str) -> bool:
        """Whether what an input is linked to runs before the node in any case, declared or not."""
        return name not in self.lazy and (name in self.inputs or not self.hides_lazy)


@dataclass(frozen=True, slots=True)
class Definitions:
    """All node classes of one engine.

    Attributes:
        nodes: By class.
        replacements: Classes that are gone, with the class that ComfyUI puts in their place.
    """

    nodes: Mapping[str, NodeDefinition]
    replacements: Mapping[str, str] = field(default_factory=dict)

    def node(self, class_type: str) -> NodeDefinition | None:
        """What runs for a class; None where the engine knows none such."""
        return self.nodes.get(self.replacements.get(class_type, class_type))


def parse_definitions(object_info: Mapping[str, Any], node_replacements: Mapping[str, Any]) -> Definitions:
    """Read the answers of `/object_info` and `/node_replacements`; what isn't as expected is left out."""
    nodes = {name: _node(name, entry) for name, entry in object_info.items() if isinstance(entry, dict)}
    return Definitions(nodes, dict(_replacements(node_replacements, nodes)))


def output_nodes(workflow: Workflow, definitions: Definitions | None) -> frozenset[str]:
    """The nodes from which ComfyUI starts; none where the classes are not known."""
    if definitions is None:
        return frozenset()
    found = ((node_id, definitions.node(node["class_type"])) for node_id, node in workflow.items())
    return frozenset(node_id for node_id, node in found if node and node.is_output)


def _replacements(document: Mapping[str, Any], known: Mapping[str, NodeDefinition]) -> Iterator[tuple[str, str]]:
    """ComfyUI takes the first replacement of a class that is gone, if there is such a class."""
    for old, candidates in document.items():
        first = candidates[0] if isinstance(candidates, list) and candidates else None
        new = first.get("new_node_id") if isinstance(first, dict) else None
        if isinstance(new, str) and new in known and old not in known:
            yield old, new


def _node(class_type: str, entry: dict[str, Any]) -> NodeDefinition:
    core = _CORE_MODULES.fullmatch(str(entry.get("python_module"))) is not None
    outputs = entry.get("output")
    lazy = _lazy(entry.get("input"))
    return NodeDefinition(
        inputs=dict(_inputs(class_type, entry.get("input"), core=core)),
        outputs=tuple(map(_kind, outputs)) if core and isinstance(outputs, list) else None,
        is_output=entry.get("output_node") is True,
        lazy=lazy,
        # A switch for any number of inputs shows its first ones here, and makes up the others while it runs.
        hides_lazy=bool(lazy) and not core,
    )


def _lazy(groups: object) -> frozenset[str]:
    """Names as `get_input_info` finds them in ComfyUI: a required input goes before an optional one of its name."""
    found: dict[str, bool] = {}
    for name, config, _is_required in _declared(groups):
        options = config[1] if isinstance(config, list) and len(config) > 1 else None
        found[name] = isinstance(options, dict) and bool(options.get("lazy"))
    return frozenset(name for name, lazy in found.items() if lazy)


def _declared(groups: object) -> Iterator[tuple[str, Any, bool]]:
    """Each declared input with its config and whether it is required; what counts of one in both groups comes last."""
    for group in ("optional", "required"):
        declared = groups.get(group) if isinstance(groups, dict) else None
        for name, config in declared.items() if isinstance(declared, dict) else ():
            yield name, config, group == "required"


def _inputs(class_type: str, groups: object, *, core: bool) -> Iterator[tuple[str, InputDefinition]]:
    judged = core and class_type not in _SELF_CHECKING
    for name, config, is_required in _declared(groups):
        if isinstance(config, list) and config and not _is_dynamic(config[0]):
            yield name, _input((class_type, name), config, required=is_required, judged=judged)


def _input(place: tuple[str, str], config: list[Any], *, required: bool, judged: bool) -> InputDefinition:
    kind = _kind(config[0])
    options = config[1] if len(config) > 1 and isinstance(config[1], dict) else {}
    listed = _listed(config[0], options) if place[1] == CUSTOM_INPUT else frozenset()
    if not judged:
        return InputDefinition(kind, required, listed=listed)
    choices = config[0] if isinstance(config[0], list) and _are_fixed(place, config[0], options) else None
    return InputDefinition(
        kind,
        required,
        linked=kind,
        minimum=_bound(options.get("min")),
        maximum=_bound(options.get("max")),
        choices=None if choices is None else tuple(choices),
        listed=listed,
    )


def _listed(declared: object, options: dict[str, Any]) -> frozenset[str]:
    """The options of either form of a list; those of V3 stand beside the type."""
    values = declared if isinstance(declared, list) else options.get("options")
    return frozenset(value for value in values if isinstance(value, str)) if isinstance(values, list) else frozenset()


def _kind(declared: object) -> str:
    """The type by which links are judged; a list of options, and V3's placeholder, fit anything."""
    return declared if isinstance(declared, str) and declared != _MATCH_TYPE else ANY


def _is_dynamic(declared: object) -> bool:
    return isinstance(declared, str) and declared.startswith(_DYNAMIC_PREFIX) and declared != _MATCH_TYPE


def _bound(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _are_fixed(place: tuple[str, str], values: list[Any], options: dict[str, Any]) -> bool:
    """Whether these are all the values there can be, rather than the files of a moment.

    Only lists that stand in place of the type count: those of `COMBO` are not checked by every ComfyUI.
    """
    files = (
        place in LOADER_INPUTS
        or place in MEDIA_INPUTS
        or place in _DIRECTORY_INPUTS
        or any(_FILE_OPTION.search(name) for name in options)
        or any(isinstance(value, str) and _FILE_NAME.search(value) for value in values)
    )
    return 0 < len(values) <= _LONGEST_CHOICE and not files

"""What an operator allows of any workflow, by setting: which nodes it may use and how much one node may make. Pure.

Budgets are counted from what the graph itself says: numbers, and links to ComfyUI's Primitive nodes. A size that some
node computes is not known before the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from function.errors import BudgetExceededError, NodeRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from function.workflow import Workflow

_FRAME_INPUTS = ("length", "video_frames", "num_frames", "frames")
_REPEATERS = frozenset({"RepeatImageBatch", "RepeatLatentBatch"})
_PRIMITIVE = "Primitive"
_LINK_LENGTH = 2
_HUGE = 2**53
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """What workflows may use and ask for.

    Attributes:
        allowed_nodes: Patterns of classes; empty: all.
        denied_nodes: Patterns of classes that are refused even if they are allowed.
        max_pixels: Largest width x height x batch x frames of one node; 0: unlimited.
        max_batch: Largest batch of one node; 0: unlimited.
        max_frames: Most frames of one node; 0: unlimited.
    """

    allowed_nodes: tuple[str, ...] = ()
    denied_nodes: tuple[str, ...] = ()
    max_pixels: int = 0
    max_batch: int = 0
    max_frames: int = 0


def check_policy(workflow: Workflow, policy: Policy, *, replacements: Mapping[str, str]) -> None:
    """Refuse a workflow that uses or asks for more than the operator allows, also in nodes that no output needs.

    Args:
        workflow: A parsed graph.
        policy: What is allowed.
        replacements: Classes that the engine puts in place of others; both must be allowed.

    Raises:
        NodeRefusedError: Naming node, class and setting.
        BudgetExceededError: Naming node, value, limit and setting.
    """
    for node_id, node in workflow.items():
        name = node["class_type"]
        shown = name[:_SHOWN_CHARACTERS]
        for class_type in {name, replacements.get(name, name)}:
            _check_class(node_id, class_type, policy)
        for setting, limit, value, what in _demands(workflow, node_id, policy):
            if 0 < limit < value:
                raise BudgetExceededError(
                    f"node {node_id} ({shown}): asks for {value} {what}; {setting}={limit} is the most",
                    details={"setting": setting, "limit": limit, "value": value, "node_id": node_id},
                )


def _check_class(node_id: str, class_type: str, policy: Policy) -> None:
    if denied := _match(class_type, policy.denied_nodes):
        reason = f"refused by DENIED_NODES, {denied}"
    elif policy.allowed_nodes and not _match(class_type, policy.allowed_nodes):
        reason = "not among ALLOWED_NODES"
    else:
        return
    shown = class_type[:_SHOWN_CHARACTERS]
    details = {"node_id": node_id, "class_type": shown}
    raise NodeRefusedError(f"node {node_id}: class {shown!r} is {reason}", details=details)


def _match(class_type: str, patterns: Iterable[str]) -> str:
    return next((pattern for pattern in patterns if fnmatchcase(class_type, pattern)), "")


def _demands(workflow: Workflow, node_id: str, policy: Policy) -> Iterator[tuple[str, int, int, str]]:
    """Setting, limit, demand and its name, for each budget that a node draws on."""
    node = workflow[node_id]
    inputs = node["inputs"]
    batch = _number(workflow, inputs.get("amount" if node["class_type"] in _REPEATERS else "batch_size")) or 1
    yield "MAX_BATCH", policy.max_batch, batch, "images at a time"
    width, height = (_number(workflow, inputs.get(name)) for name in ("width", "height"))
    if width is None or height is None:  # then a `length` may be anything
        return
    frames = max(_number(workflow, inputs.get(name)) or 1 for name in _FRAME_INPUTS)
    yield "MAX_FRAMES", policy.max_frames, frames, "frames"
    yield "MAX_PIXELS", policy.max_pixels, width * height * batch * frames, "pixels (width x height x batch x frames)"


def _number(workflow: Workflow, value: Any) -> int | None:  # noqa: ANN401  (JSON)
    """The whole number that the engine would make of an input's value; None where the graph doesn't tell."""
    for _ in workflow:  # a chain of links is no longer than that, unless it is a cycle
        if not isinstance(value, list):
            break
        value = _primitive(workflow, value)
    if isinstance(value, dict):
        value = value.get("__value__")
    try:
        return min(int(value), _HUGE)  # more is no different, and a product of such numbers may have no text
    except (TypeError, ValueError, OverflowError):
        return None


def _primitive(workflow: Workflow, link: list[Any]) -> Any:  # noqa: ANN401  (JSON)
    source = link[0] if len(link) == _LINK_LENGTH else None
    node = workflow.get(source) if isinstance(source, str) else None
    return node["inputs"].get("value") if node and node["class_type"].startswith(_PRIMITIVE) else None

"""A workflow judged by the definitions of its nodes, in ComfyUI's words, before models are brought. Pure.

As in ComfyUI, every class must exist, and of the rest only what an output needs is judged. Unlike in ComfyUI, one
output that can't run is enough for a refusal: a dropped branch is no success. What the engine might accept passes.
"""

from __future__ import annotations

import math
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from function.errors import InvalidWorkflowError
from function.validation.definitions import ANY, InputDefinition
from function.workflow import NO_OUTPUT, is_link

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from function.validation.definitions import Definitions, NodeDefinition
    from function.workflow import Workflow

    Problem: TypeAlias = dict[str, Any]
    _Following: TypeAlias = Callable[[str], Iterable[str]]

_LINK_LENGTH = 2
_SHOWN_CHARACTERS = 200
_REPORTED_NODES = 50
_LINES = 5
_LONGEST_SHOWN_LIST = 20
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float}


def check_graph(workflow: Workflow, definitions: Definitions, *, undescribed: Collection[str] = ()) -> None:
    """Refuse a workflow that the engine would refuse, or of which it would drop a branch.

    Args:
        workflow: A parsed graph.
        definitions: The engine's node classes.
        undescribed: Classes that the engine may have all the same; nothing of their nodes is judged.

    Raises:
        InvalidWorkflowError: With ComfyUI's `node_errors`.
    """
    known = definitions.nodes.keys() | definitions.replacements.keys() | set(undescribed)
    unknown = {
        node_id: [_unknown_class(node_id, node)]
        for node_id, node in workflow.items()
        if node["class_type"] not in known
    }
    if unknown:
        raise _to_error(workflow, unknown, dependents=lambda _: [])
    graph = _Graph(workflow, definitions)
    if not graph.outputs and not any(node["class_type"] in undescribed for node in workflow.values()):
        raise InvalidWorkflowError(NO_OUTPUT)
    if problems := graph.problems():
        raise _to_error(workflow, problems, dependents=graph.dependent_outputs)


def _unknown_class(node_id: str, node: dict[str, Any]) -> Problem:
    name = _shown(node["class_type"])
    known = {"node_id": node_id, "class_type": name}
    message = f"Node '{name}' not found. The custom node may not be installed."
    return _problem("missing_node_type", message, f"Node ID '#{node_id}'", **known)


class _Graph:
    """One workflow with the definitions of its nodes; one that ComfyUI will replace or did not describe has none."""

    def __init__(self, workflow: Workflow, definitions: Definitions) -> None:
        self._workflow = workflow
        self._definitions: dict[str, NodeDefinition | None] = {
            node_id: definitions.nodes.get(node["class_type"]) for node_id, node in workflow.items()
        }
        self.outputs = [
            node_id
            for node_id, node in workflow.items()
            if (definition := definitions.node(node["class_type"])) and definition.is_output
        ]

    def problems(self) -> dict[str, list[Problem]]:
        """What is wrong with each node that an output needs; nodes with nothing wrong are left out."""
        checked = _reached(self.outputs, self._sources)
        awaited = _reached(self.outputs, self._awaited)
        found: dict[str, list[Problem]] = {node_id: [] for node_id in self._workflow}
        for node_id in checked:
            found[node_id] += self._node_problems(node_id)
        for node_id in awaited:
            found[node_id] += self._loose_ends(node_id, checked)
        for node_id, problem in self._cycle(checked, self._sources) or self._cycle(awaited, self._awaited):
            found[node_id].append(problem)
        return {node_id: problems for node_id, problems in found.items() if problems}

    def dependent_outputs(self, node_id: str) -> list[str]:
        """The output nodes that need a node, itself included."""
        users: dict[str, list[str]] = {}
        for user in self._workflow:
            for source in {*self._sources(user), *self._awaited(user)}:
                users.setdefault(source, []).append(user)
        dependents = _reached([node_id], lambda one: users.get(one, ()))
        return [output for output in self.outputs if output in dependents]

    def _sources(self, node_id: str) -> Iterator[str]:
        """The nodes that declared inputs of a node are linked to."""
        definition = self._definitions[node_id]
        values = self._workflow[node_id]["inputs"]
        for name in definition.inputs if definition else ():
            link = values.get(name)
            if isinstance(link, list) and len(link) == _LINK_LENGTH and self._exists(link[0]):
                yield link[0]

    def _awaited(self, node_id: str) -> Iterator[str]:
        """The nodes that run before a node: ComfyUI then follows links of all inputs, also of unchecked ones."""
        return (source for _name, source in self._awaited_links(node_id) if self._exists(source))

    def _awaited_links(self, node_id: str) -> Iterator[tuple[str, str]]:
        definition = self._definitions[node_id]
        for name, value in self._workflow[node_id]["inputs"].items() if definition else ():
            if _is_followed(value) and definition and definition.awaits(name):
                yield name, value[0]

    def _loose_ends(self, node_id: str, checked: Collection[str]) -> Iterator[Problem]:
        """Links to nowhere that ComfyUI accepts, and whose run then ends its only worker thread."""
        definition = self._definitions[node_id]
        for name, source in self._awaited_links(node_id):
            is_told = node_id in checked and definition is not None and name in definition.inputs
            if not is_told and not self._exists(source):
                link = self._workflow[node_id]["inputs"][name]
                yield self._broken_link(node_id, name, f"there is no node {_shown(source)}", link)

    def _exists(self, node_id: object) -> bool:
        return isinstance(node_id, str) and node_id in self._workflow

    def _cycle(self, nodes: Iterable[str], sources: _Following) -> list[tuple[str, Problem]]:
        """One error per node of a cycle, as in ComfyUI 0.33; of several cycles only one is told."""
        try:
            TopologicalSorter({node_id: list(sources(node_id)) for node_id in nodes}).prepare()
        except CycleError as error:
            path = list(reversed(error.args[1]))
            members = list(dict.fromkeys(path))
            shown = " -> ".join(f"{node_id} ({_shown(self._workflow[node_id]['class_type'])})" for node_id in path)
            what = ("dependency_cycle", "Dependency cycle detected", shown)
            return [(node_id, _problem(*what, node_id=node_id, cycle_nodes=members)) for node_id in members]
        return []

    def _node_problems(self, node_id: str) -> Iterator[Problem]:
        definition = self._definitions[node_id]
        values = self._workflow[node_id]["inputs"]
        for name, declared in definition.inputs.items() if definition else ():
            if name not in values:
                if declared.required:
                    yield _problem("required_input_missing", "Required input is missing", name, input_name=name)
            elif isinstance(values[name], list):
                yield from self._link_problems(node_id, name, declared, values[name])
            else:
                yield from _value_problems(name, declared, values[name])

    def _link_problems(self, node_id: str, name: str, declared: InputDefinition, link: list[Any]) -> Iterator[Problem]:
        if len(link) != _LINK_LENGTH:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            yield _problem("bad_linked_input", message, name, input_name=name, received_value=_shown(link))
            return
        source, slot = link
        if not self._exists(source):
            yield self._broken_link(node_id, name, f"there is no node {_shown(source)}", link)
            return
        definition = self._definitions[source]
        if definition is None or definition.outputs is None:
            return
        try:
            received = definition.outputs[slot]
        except (IndexError, TypeError):
            text = f"node {source} ({self._workflow[source]['class_type']}) has no output {_shown(slot)}"
            yield self._broken_link(node_id, name, text, link)
            return
        if not _fits(received, declared.linked):
            yield _mismatch(name, declared, received, link)

    def _broken_link(self, node_id: str, name: str, text: str, link: list[Any]) -> Problem:
        """ComfyUI stumbles over such a link and says so; only the type is its own here."""
        known = {"input_name": name, "linked_node": _shown(link)}
        if node_id in self.outputs:
            return _problem("exception_during_validation", "Exception when validating node", text, **known)
        return _problem("exception_during_inner_validation", "Exception when validating inner node", text, **known)


def _is_followed(value: Any) -> bool:  # noqa: ANN401  (any JSON value)
    """Whether a run takes an input for a link, declared or not."""
    return is_link(value) and isinstance(value[1], int | float)


def _reached(starts: Iterable[str], following: _Following) -> set[str]:
    reached = set(starts)
    waiting = list(reached)
    while waiting:
        fresh = set(following(waiting.pop())) - reached
        reached |= fresh
        waiting += fresh
    return reached


def _fits(received: str, wanted: str) -> bool:
    """Types are comma lists; one in common is enough."""
    offered, taken = ({part.strip() for part in kind.split(",")} for kind in (received, wanted))
    return ANY in offered | taken or bool(offered & taken)


def _mismatch(name: str, declared: InputDefinition, received: str, link: list[Any]) -> Problem:
    details = f"{name}, received_type({received}) mismatch input_type({declared.kind})"
    known = {"input_name": name, "received_type": received, "linked_node": link}
    return _problem("return_type_mismatch", "Return type mismatch between linked nodes", details, **known)


def _value_problems(name: str, declared: InputDefinition, value: Any) -> Iterator[Problem]:  # noqa: ANN401  (JSON)
    if isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    known = {"input_name": name, "received_value": _shown(value)}
    try:
        converted = _CONVERSIONS[declared.kind](value) if declared.kind in _CONVERSIONS else None
    except (TypeError, ValueError, OverflowError):
        message = f"Failed to convert an input value to a {declared.kind} value"
        yield _problem("invalid_input_type", message, f"{name}, {_shown(value)}", **known)
        return
    if converted is not None:
        yield from _bound_problems(name, declared, converted, known)
    if declared.choices is not None and value not in declared.choices:
        yield _not_in_list(name, declared.choices, value, known)


def _bound_problems(name: str, declared: InputDefinition, value: float, known: dict[str, Any]) -> Iterator[Problem]:
    low, high = declared.minimum, declared.maximum
    if low is not None and value < low:
        yield _problem("value_smaller_than_min", f"Value {_shown(value)} smaller than min of {low}", name, **known)
    elif high is not None and value > high:
        yield _problem("value_bigger_than_max", f"Value {_shown(value)} bigger than max of {high}", name, **known)


def _not_in_list(name: str, choices: tuple[Any, ...], value: object, known: dict[str, Any]) -> Problem:
    shown = str(list(choices)) if len(choices) <= _LONGEST_SHOWN_LIST else f"(list of length {len(choices)})"
    details = f"{name}: {_shown(value)!r} not in {shown}"
    return _problem("value_not_in_list", "Value not in list", details, **known)


def _problem(kind: str, message: str, details: str, **extra_info: object) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _shown(value: object) -> object:
    """A value as it may stand in an answer: a number that JSON has as it is, anything else as text that is not long."""
    if isinstance(value, bool) or value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and value.bit_length() <= _SHOWN_CHARACTERS:
        return value
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _to_error(
    workflow: Workflow, problems: Mapping[str, list[Problem]], *, dependents: Callable[[str], list[str]]
) -> InvalidWorkflowError:
    node_errors = {}
    lines: list[str] = []
    for node_id, errors in islice(problems.items(), _REPORTED_NODES):
        name = _shown(workflow[node_id]["class_type"])
        node_errors[node_id] = {"errors": errors, "dependent_outputs": dependents(node_id), "class_type": name}
        lines += (_line(node_id, name, error) for error in errors)
    more = f"; and {len(lines) - _LINES} more" if len(lines) > _LINES else ""
    message = f"the workflow can't run: {'; '.join(lines[:_LINES])}{more}"
    return InvalidWorkflowError(message, details={"node_errors": node_errors})


def _line(node_id: str, class_type: object, error: Problem) -> str:
    name = error["extra_info"].get("input_name")
    where = f"node {node_id} ({class_type})" + (f", input {name}" if name else "")
    return f"{where}: {error['type']}: {error['message']}: {error['details']}"

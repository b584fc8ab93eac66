"""Judging a prompt before it is queued, error for error as ComfyUI 0.3.64 does.

Bodies of these errors are compared with recorded ones; texts and keys are ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from function.engine.embedded.errors import MalformedPromptError, type_name_of
from function.engine.embedded.nodes.node import COMBO, Input, Node

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from function.engine.embedded.folders import Folders

    Problem: TypeAlias = dict[str, Any]

_LINK_LENGTH = 2
_LONGEST_SHOWN_LIST = 20
_CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a prompt.

    Attributes:
        outputs: Output nodes that can run; the prompt is refused where there is none.
        node_errors: Node id -> its errors, also of a prompt that is accepted for its good outputs.
        error: Why the prompt is refused; None where it is accepted.
    """

    outputs: tuple[str, ...]
    node_errors: dict[str, Any] = field(default_factory=dict)
    error: Problem | None = None


def validate(
    prompt: object, nodes: Mapping[str, Node], folders: Folders, *, targets: Collection[str] | None = None
) -> Verdict:
    """Judge a prompt; widget values are converted in place ("64" becomes 64).

    Args:
        prompt: The `prompt` member of a request.
        nodes: The classes of nodes there are.
        folders: Where combos of file names look.
        targets: Only these output nodes are wanted; None for all.

    Raises:
        MalformedPromptError: No mapping of nodes at all.
    """
    graph = _graph(prompt)
    outputs = []
    for node_id, node in graph.items():
        if (refused := _class_problem(node_id, node, nodes)) is not None:
            return Verdict((), error=refused)
        if nodes[node["class_type"]].is_output and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict((), error=_problem("prompt_no_outputs", "Prompt has no outputs", ""))
    return _Validation(graph, nodes, folders).verdict(outputs)


def _graph(prompt: object) -> dict[str, Any]:
    if not isinstance(prompt, dict) or not all(isinstance(node, dict | list | str) for node in prompt.values()):
        raise MalformedPromptError("the prompt is no mapping of nodes")
    return prompt


def _class_problem(node_id: str, node: Any, nodes: Mapping[str, Node]) -> Problem | None:  # noqa: ANN401  (JSON)
    if "class_type" not in node:
        message = "Cannot execute because a node is missing the class_type property."
    elif not isinstance(node, dict):
        raise MalformedPromptError("a node is no mapping")
    elif node["class_type"] not in nodes:
        message = f"Cannot execute because node {node['class_type']} does not exist."
    else:
        return None
    return _problem("invalid_prompt", message, f"Node ID '#{node_id}'")


def _problem(kind: str, message: str, details: str, **extra_info: object) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


class _InputError(Exception):
    """One input is wrong."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem["message"])
        self.problem = problem


class _Validation:
    """One walk over one prompt; `_judged` holds each node's errors, empty for a node that only depends on a bad one."""

    def __init__(self, graph: Mapping[str, Any], nodes: Mapping[str, Node], folders: Folders) -> None:
        self._graph = graph
        self._nodes = nodes
        self._folders = folders
        self._judged: dict[str, tuple[bool, list[Problem]]] = {}
        self._open: set[str] = set()

    def verdict(self, outputs: Collection[str]) -> Verdict:
        good: list[str] = []
        texts: list[str] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            valid, problems = self._output(output)
            if valid:
                good.append(output)
                continue
            texts += [f"{problem['message']}: {problem['details']}" for problem in problems]
            self._note(node_errors, output)
        if good:
            return Verdict(tuple(good), node_errors)
        message = "Prompt outputs failed validation"
        return Verdict((), node_errors, _problem("prompt_outputs_failed_validation", message, "\n".join(texts)))

    def _note(self, node_errors: dict[str, Any], output: str) -> None:
        for node_id, (valid, problems) in self._judged.items():
            if not valid and problems:
                fresh = {"errors": problems, "dependent_outputs": [], "class_type": self._graph[node_id]["class_type"]}
                node_errors.setdefault(node_id, fresh)["dependent_outputs"].append(output)

    def _output(self, output: str) -> tuple[bool, list[Problem]]:
        try:
            return self._node(output)
        except (LookupError, TypeError) as error:
            failure = {"exception_type": type_name_of(error), "traceback": []}
            message = "Exception when validating node"
            self._judged[output] = (False, [_problem("exception_during_validation", message, str(error), **failure)])
            return self._judged[output]

    def _node(self, node_id: str) -> tuple[bool, list[Problem]]:
        if node_id in self._judged:
            return self._judged[node_id]
        if node_id in self._open:  # a cycle: ComfyUI refuses the prompt without naming any error
            return False, []
        self._open.add(node_id)
        valid, problems = self._inputs(node_id)
        self._open.discard(node_id)
        self._judged[node_id] = (valid and not problems, problems)
        return self._judged[node_id]

    def _inputs(self, node_id: str) -> tuple[bool, list[Problem]]:
        values = self._graph[node_id]["inputs"]
        node = self._nodes[self._graph[node_id]["class_type"]]
        valid = True
        problems: list[Problem] = []
        for name, one in node.all_inputs().items():
            try:
                valid &= self._input(node, name, one, values)
            except _InputError as error:
                problems.append(error.problem)
        return valid, problems + self._own_check(node, values)

    def _input(self, node: Node, name: str, one: Input, values: dict[str, Any]) -> bool:
        """Whether all that an input depends on is good.

        Raises:
            _InputError: The input itself is wrong.
        """
        if name not in values:
            if name in node.optional:
                return True
            raise _InputError(_problem("required_input_missing", "Required input is missing", name, input_name=name))
        if isinstance(values[name], list):
            return self._link(name, one, values[name])
        values[name] = self._converted(name, one, values[name])
        if name not in node.checked:
            self._check_bounds(node, name, one, values[name])
        return True

    def _link(self, name: str, one: Input, link: list[Any]) -> bool:
        info = self._config(one)
        if len(link) != _LINK_LENGTH:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            raise _InputError(
                _problem("bad_linked_input", message, name, input_name=name, input_config=info, received_value=link)
            )
        source, slot = link
        received = self._nodes[self._graph[source]["class_type"]].outputs[slot]
        if not _fits(received, one):
            raise _InputError(_mismatch(name, info, received, link))
        try:
            valid, _ = self._node(source)
        except (LookupError, TypeError) as error:
            self._judged[source] = (False, [_inner_failure(name, info, error, link)])
            return False
        return valid

    def _config(self, one: Input) -> list[Any]:
        kind = one.values(self._folders) if one.type == COMBO else one.type
        return [kind, dict(one.options or {})]

    def _converted(self, name: str, one: Input, value: Any) -> Any:  # noqa: ANN401  (JSON)
        if isinstance(value, dict) and "__value__" in value:
            value = value["__value__"]
        if one.type not in _CONVERSIONS:
            return value
        try:
            return _CONVERSIONS[one.type](value)
        except (TypeError, ValueError, OverflowError) as error:
            message = f"Failed to convert an input value to a {one.type} value"
            details = f"{name}, {value}, {error}"
            known = {"input_name": name, "input_config": self._config(one), "received_value": value}
            raise _InputError(
                _problem("invalid_input_type", message, details, **known, exception_message=str(error))
            ) from error

    def _check_bounds(self, node: Node, name: str, one: Input, value: Any) -> None:  # noqa: ANN401  (JSON)
        options = one.options or {}
        known = {"input_name": name, "input_config": self._config(one), "received_value": value}
        if "min" in options and value < options["min"]:
            message = f"Value {value} smaller than min of {options['min']}"
            raise _InputError(_problem("value_smaller_than_min", message, name, **known))
        if "max" in options and value > options["max"]:
            message = f"Value {value} bigger than max of {options['max']}"
            raise _InputError(_problem("value_bigger_than_max", message, name, **known))
        if one.type == COMBO and not node.schema:
            self._check_choice(name, one, value, known)

    def _check_choice(self, name: str, one: Input, value: object, known: dict[str, Any]) -> None:
        choices = one.values(self._folders)
        if value in choices:
            return
        shown = str(choices)
        if len(choices) > _LONGEST_SHOWN_LIST:
            shown = f"(list of length {len(choices)})"
            known = known | {"input_config": None}
        raise _InputError(
            _problem("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", **known)
        )

    def _own_check(self, node: Node, values: Mapping[str, Any]) -> list[Problem]:
        if node.check is None or any(isinstance(values.get(name, []), list) for name in node.checked):
            return []
        if (text := node.check(self._folders, values)) is None:
            return []
        message = "Custom validation failed for node"
        return [
            _problem("custom_validation_failed", message, f"{name} - {text}", input_name=name) for name in node.checked
        ]


def _fits(received: str, one: Input) -> bool:
    return "*" in {received, one.type} or bool(set(received.split(",")) & set(one.type.split(",")))


def _mismatch(name: str, info: list[Any], received: str, link: list[Any]) -> Problem:
    details = f"{name}, received_type({received}) mismatch input_type({info[0]})"
    known = {"input_name": name, "input_config": info, "received_type": received, "linked_node": link}
    return _problem("return_type_mismatch", "Return type mismatch between linked nodes", details, **known)


def _inner_failure(name: str, info: list[Any], error: Exception, link: list[Any]) -> Problem:
    return _problem(
        "exception_during_inner_validation",
        "Exception when validating inner node",
        str(error),
        input_name=name,
        input_config=info,
        exception_message=str(error),
        exception_type=type_name_of(error),
        traceback=[],
        linked_node=link,
    )

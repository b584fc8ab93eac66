"""The graph in ComfyUI's API format: checked, searched and rewritten, without any engine.

A node is `{"class_type": str, "inputs": {name: value}, "_meta"?: {...}}`; a value is a literal or a link
`[node_id, slot]`. Everything here is pure: functions take a graph and return a new one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

from function.errors import InputRefusedError, InvalidWorkflowError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Workflow: TypeAlias = dict[str, dict[str, Any]]

JOB_STAMP = "comfyfn_job"
OUTPUT_INPUT = "filename_prefix"
"""The input that makes a node one that saves."""

NO_OUTPUT = "workflow: no output node; add one that saves, for example SaveImage"
_URL_WITH_QUERY = re.compile(r"[a-z][a-z0-9+.-]*://[^\s?]+\?", re.IGNORECASE)
_CUT_URL = re.compile(r"[a-z][a-z0-9+.-]*://(\.\.\.@|[^\s?]+\?\.\.\.$)", re.IGNORECASE)
_URL_WITH_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#]*@", re.IGNORECASE)
_LINK_PARTS = 2
_UI_KEYS = frozenset({"nodes", "links", "last_node_id"})


def parse_workflow(graph: object) -> Workflow:
    """Check that a value is a runnable graph in API format.

    Raises:
        InvalidWorkflowError: One line that says what is wrong and, for a UI export, how to get the API format.
    """
    if not isinstance(graph, dict):
        raise InvalidWorkflowError("workflow: expected an object of node id to node, as in ComfyUI's API format")
    if _UI_KEYS & graph.keys() and isinstance(graph.get("nodes"), list):
        raise InvalidWorkflowError(
            "workflow: this is the format that ComfyUI's editor saves; "
            "export it with Workflow > Export (API) and send that"
        )
    for node_id, node in graph.items():
        _check_node(node_id, node)
    if not graph:
        raise InvalidWorkflowError(NO_OUTPUT)
    return graph


def _check_node(node_id: str, node: object) -> None:
    if not isinstance(node, dict):
        raise InvalidWorkflowError(f"workflow: node {node_id} is not an object")
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        raise InvalidWorkflowError(f"workflow: node {node_id} has no class_type")
    if not isinstance(node.get("inputs"), dict):
        raise InvalidWorkflowError(f"workflow: node {node_id} ({node['class_type']}) has no inputs object")


def literal_inputs(workflow: Workflow) -> Iterator[tuple[str, str, str, str]]:
    """Every string literal of the graph as (node id, class, input name, value)."""
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                yield node_id, node["class_type"], name, value


def needed_nodes(workflow: Workflow, outputs: Collection[str], *, done: Collection[str] = ()) -> frozenset[str]:
    """The nodes that an engine visits for these output nodes: they and what they are linked to, step by step.

    Args:
        workflow: The graph.
        outputs: Its output nodes; none: not known, and taken to be those that no node is linked to.
        done: Nodes whose results are there: nothing beyond them is visited.
    """
    links = {node_id: {target for target in _links(node) if target in workflow} for node_id, node in workflow.items()}
    waiting = list(outputs or workflow.keys() - set().union(*links.values())) or list(workflow)
    needed: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed:
            needed.add(node_id)
            waiting += links[node_id] if node_id not in done else ()
    return frozenset(needed)


def _links(node: dict[str, Any]) -> Iterator[str]:
    """The nodes that the inputs of a node are linked to."""
    for value in node.get("inputs", {}).values():
        if isinstance(value, list) and len(value) == _LINK_PARTS and isinstance(value[0], str):
            yield value[0]


def replace_inputs(workflow: Workflow, replacements: dict[tuple[str, str], Any]) -> Workflow:
    """The graph with new values for some (node id, input name); an input that is not there is added.

    What does not change is shared with the graph that was given.
    """
    changed = dict(workflow)
    for (node_id, name), value in replacements.items():
        node = changed[node_id]
        changed[node_id] = node | {"inputs": node["inputs"] | {name: value}}
    return changed


def confine_outputs(workflow: Workflow, job_id: str) -> Workflow:
    """The graph with every output of the job in a folder of its own below the engine's output directory.

    An output node also gets the job's id as an extra input. ComfyUI ignores inputs it doesn't know, but its cache key
    covers them: a save node never answers from the cache with a file that another job wrote and that is gone. This
    also serves a prefix that is a link, which can't be moved.

    Raises:
        InputRefusedError: A prefix points outside (`..`, absolute).
    """
    replacements: dict[tuple[str, str], Any] = {}
    for node_id, node in workflow.items():
        prefix = node["inputs"].get(OUTPUT_INPUT)
        if prefix is not None:
            replacements[node_id, JOB_STAMP] = job_id
        if isinstance(prefix, str):
            check_relative(prefix, what=f"node {node_id}, input {OUTPUT_INPUT}")
            replacements[node_id, OUTPUT_INPUT] = f"{job_id}/{prefix}"
    return replace_inputs(workflow, replacements)


def without_url_secrets(value: Any) -> Any:  # noqa: ANN401  (any JSON: it need not be a valid graph)
    """A workflow as it may be stored: what often is a secret in a URL, its query, its user and password, is cut off."""
    if isinstance(value, dict):
        return {name: without_url_secrets(member) for name, member in value.items()}
    if isinstance(value, list):
        return [without_url_secrets(item) for item in value]
    if isinstance(value, str):
        bare = f"{value.partition('?')[0]}?..." if _URL_WITH_QUERY.match(value) else value
        return _URL_WITH_LOGIN.sub(r"\1...@", bare, count=1) if _URL_WITH_LOGIN.match(bare) else bare
    return value


def has_cut_urls(value: Any) -> bool:  # noqa: ANN401  (any JSON: it need not be a valid graph)
    """Whether `without_url_secrets` has cut something off."""
    if isinstance(value, dict):
        return any(has_cut_urls(member) for member in value.values())
    if isinstance(value, list):
        return any(has_cut_urls(item) for item in value)
    return isinstance(value, str) and bool(_CUT_URL.match(value))


def replace_prefix(value: Any, old: str, new: str) -> Any:  # noqa: ANN401  (any JSON: it need not be a valid graph)
    """The value with another beginning of each text that begins with `old`."""
    if isinstance(value, dict):
        return {name: replace_prefix(member, old, new) for name, member in value.items()}
    if isinstance(value, list):
        return [replace_prefix(item, old, new) for item in value]
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value


def check_relative(name: str, *, what: str) -> None:
    r"""Refuse a file name that could leave the folder it is meant for.

    Refused are an empty name, an absolute path, a drive letter, a backslash, `.` and `..` segments, control
    characters, and ComfyUI's folder suffixes such as `[output]`.

    Raises:
        InputRefusedError: Naming `what`.
    """
    segments = name.split("/")
    bad_segment = any(segment in ("", ".", "..") for segment in segments[:-1]) or segments[-1] in (".", "..")
    bad_character = any(ord(character) < ord(" ") for character in name) or "\\" in name
    suffix = name.rstrip().endswith(("[input]", "[output]", "[temp]"))
    if not name or bad_segment or bad_character or suffix or name[1:2] == ":":
        raise InputRefusedError(f"{what}: {name!r} is not a relative file name inside its folder")


def is_link(value: object) -> bool:
    """Whether an input's value is the output of another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)  # noqa: PLR2004  (node and slot)


def find_input(workflow: Workflow, path: str) -> tuple[str, str]:
    """The node's id and the input's name that `3.seed` stands for; either may have dots of its own.

    Raises:
        InvalidWorkflowError: No such node or input.
    """
    parts = path.split(".")
    places = [(".".join(parts[:end]), ".".join(parts[end:])) for end in range(1, len(parts))]
    known = [(node_id, name) for node_id, name in places if node_id in workflow]
    if not known:
        node_id = path.rpartition(".")[0]
        raise InvalidWorkflowError(f"{path}: no node {node_id!r}; the workflow has {', '.join(sorted(workflow))}")
    for node_id, name in known:
        if name in workflow[node_id]["inputs"]:
            return node_id, name
    node_id, name = known[0]
    there = ", ".join(sorted(workflow[node_id]["inputs"]))
    raise InvalidWorkflowError(f"{path}: node {node_id} has no input {name!r}; it has {there}")


def set_input(workflow: Workflow, path: str, value: object) -> Workflow:
    """The graph with one input changed, named as on the command line: `3.seed`.

    Raises:
        InvalidWorkflowError: No such node or input.
    """
    return replace_inputs(workflow, {find_input(workflow, path): value})

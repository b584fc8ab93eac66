"""The graph of one prompt: its links, the signatures the cache knows nodes by, and the order of execution.

The order is ComfyUI's: of the nodes that are ready an output node goes first, then one that feeds an output directly,
then one that feeds such a node, else the one that was found first on the way up from the outputs.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Prompt: TypeAlias = Mapping[str, Mapping[str, Any]]

_LINK_LENGTH = 2


def is_link(value: object) -> bool:
    """Whether an input's value is `[node id, output index]`."""
    return (
        isinstance(value, list)
        and len(value) == _LINK_LENGTH
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def links(prompt: Prompt, node_id: str) -> Iterator[str]:
    """The nodes that a node takes its inputs from, in the order of the inputs."""
    for value in prompt[node_id]["inputs"].values():
        if is_link(value):
            yield value[0]


def signatures(prompt: Prompt, fingerprint: Callable[[str], str]) -> dict[str, str]:
    """For each node a digest of its class, its inputs (unknown ones too), its fingerprint and all that it depends on.

    Nodes outside the runnable graph (no `inputs`, a link to nowhere, a cycle) have no signature.
    """
    known: dict[str, str] = {}
    for node_id in prompt:
        for each in _upwards(prompt, node_id, known):
            known[each] = _signature(prompt[each], known, fingerprint(each))
    return known


def _upwards(prompt: Prompt, node_id: str, known: Mapping[str, str]) -> list[str]:
    """`node_id` and what it depends on, dependencies first, without those already known; nothing if it can't run."""
    order: dict[str, None] = {}
    stack: list[tuple[str, bool]] = [(node_id, False)]
    path: set[str] = set()
    while stack:
        each, finished = stack.pop()
        if finished:
            path.discard(each)
            order[each] = None
        elif each in path or each not in prompt or "inputs" not in prompt[each]:
            return []
        elif each not in known and each not in order:
            path.add(each)
            stack.append((each, True))
            stack += [(source, False) for source in links(prompt, each) if source not in order]
    return list(order)


def _signature(node: Mapping[str, Any], known: Mapping[str, str], fingerprint: str) -> str:
    inputs = [
        [name, "link", known[value[0]], value[1]] if is_link(value) else [name, "value", value]
        for name, value in sorted(node["inputs"].items())
    ]
    text = json.dumps([node["class_type"], fingerprint, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Order:
    """Hands out the nodes that `outputs` need, one at a time.

    Args:
        prompt: A validated prompt.
        outputs: Output nodes to reach.
        is_cached: Whether a node's result is there already; such a node is entered only as an output.
        is_output: Whether a node is an output node.
    """

    def __init__(
        self,
        prompt: Prompt,
        outputs: Iterable[str],
        *,
        is_cached: Callable[[str], bool],
        is_output: Callable[[str], bool],
    ) -> None:
        self._is_output = is_output
        self._waiting: dict[str, set[str]] = {}
        self._blocking: dict[str, dict[str, None]] = {}
        for output in outputs:
            self._add(prompt, output, is_cached)

    def _add(self, prompt: Prompt, output: str, is_cached: Callable[[str], bool]) -> None:
        stack = [output]
        while stack:
            node_id = stack.pop()
            if node_id in self._waiting:
                continue
            sources = [source for source in links(prompt, node_id) if not is_cached(source)]
            self._waiting[node_id] = set(sources)
            self._blocking.setdefault(node_id, {})
            for source in sources:
                self._blocking.setdefault(source, {})[node_id] = None
            stack += sources

    def __iter__(self) -> Iterator[str]:
        """Each node once; asking for the next one says that the one before is done."""
        while self._waiting:
            node_id = self._pick([each for each, sources in self._waiting.items() if not sources])
            yield node_id
            del self._waiting[node_id]
            for blocked in self._blocking[node_id]:
                self._waiting[blocked].discard(node_id)

    def _pick(self, ready: list[str]) -> str:
        for distance in range(3):
            for node_id in ready:
                if any(self._is_output(reached) for reached in self._reached(node_id, distance)):
                    return node_id
        return ready[0]

    def _reached(self, node_id: str, distance: int) -> Iterable[str]:
        """The nodes that are `distance` links after this one."""
        reached: Iterable[str] = [node_id]
        for _ in range(distance):
            reached = [after for each in reached for after in self._blocking[each]]
        return reached

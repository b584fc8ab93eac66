"""How far the nodes of one prompt are, told to clients after every change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class ProgressState:
    """The nodes of one prompt that have started.

    Args:
        prompt_id: The prompt.
        send: Takes a message's type and its data.
    """

    def __init__(self, prompt_id: str, send: Callable[[str, dict[str, Any]], None]) -> None:
        self._prompt_id = prompt_id
        self._send = send
        self._nodes: dict[str, dict[str, Any]] = {}

    def start(self, node_id: str) -> None:
        """A node begins."""
        self._update(node_id, "running", 0.0, 1.0)

    def advance(self, node_id: str, value: int, maximum: int) -> None:
        """A running node has done `value` of `maximum` steps."""
        self._update(node_id, "running", value, maximum)
        step = {"value": value, "max": maximum, "prompt_id": self._prompt_id, "node": node_id}
        self._send("progress", step)

    def finish(self, node_id: str) -> None:
        """A node is done, or its result was there already."""
        maximum = self._nodes.get(node_id, {}).get("max", 1)
        self._update(node_id, "finished", maximum, maximum)

    def _update(self, node_id: str, state: str, value: float, maximum: float) -> None:
        self._nodes[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self._send("progress_state", {"prompt_id": self._prompt_id, "nodes": self._nodes})

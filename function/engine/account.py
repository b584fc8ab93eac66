"""What the socket tells of a run, complete or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

_STATUS_MESSAGES = frozenset({"execution_start", "execution_cached", "execution_success"})


class RunAccount:
    """Collects the messages of one run into the record that its history holds, where that can be known from them.

    ComfyUI sends the outputs of each node that ran, and once more those of some that came from the cache; only the
    history has all of those, the outputs of nodes that another one added, and the reason of a failure.

    Args:
        nodes: Ids of the workflow's nodes.
        prompt_id: ComfyUI's id of the run; messages of other runs are ignored.
    """

    def __init__(self, nodes: Container[str], *, prompt_id: str) -> None:
        self._nodes = nodes
        self._prompt_id = prompt_id
        self._complete = True
        self._messages: dict[str, dict[str, Any]] = {}
        self._outputs: dict[str, dict[str, Any]] = {}

    def see(self, message: Mapping[str, Any]) -> None:
        """Take one message into account."""
        kind, data = str(message.get("type")), message.get("data")
        if not isinstance(data, dict) or data.get("prompt_id") != self._prompt_id:
            return
        if kind in _STATUS_MESSAGES:
            self._messages[kind] = data
        elif kind == "execution_error":
            self._complete = False
        elif kind in {"executing", "executed"} and data.get("node") is not None:
            self._see_node(str(data["node"]), data.get("output"))

    def _see_node(self, node_id: str, output: object) -> None:
        self._complete = self._complete and node_id in self._nodes
        if isinstance(output, dict):
            self._outputs[node_id] = output

    def record(self) -> dict[str, Any] | None:
        """The entry of the history; None unless the run succeeded and nothing can be missing."""
        cached = self._messages.get("execution_cached", {}).get("nodes")
        if not self._complete or cached != [] or not self._messages.keys() >= _STATUS_MESSAGES:
            return None
        messages = [[kind, data] for kind, data in self._messages.items()]
        return {"outputs": self._outputs, "status": {"status_str": "success", "messages": messages}}

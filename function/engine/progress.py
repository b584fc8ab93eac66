"""How far a run is, from the messages of its socket."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from function.telemetry import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from function.telemetry import OnProgress
    from function.workflow import Workflow


class RunProgress:
    """Turns ComfyUI's messages of one run into a fraction of the whole workflow.

    The fraction counts the workflow's own nodes: those from the cache and those that ended are done, a running one
    counts by its steps. ComfyUI's `progress_state` lists only nodes that began, so a fraction of that would overstate;
    nodes that a node adds while it runs are not counted. The fraction never goes back.

    Args:
        workflow: The graph that runs.
        prompt_id: ComfyUI's id of the run; messages of other runs are ignored.
        on_progress: Told of each change.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        workflow: Workflow,
        *,
        prompt_id: str,
        on_progress: OnProgress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workflow = workflow
        self._prompt_id = prompt_id
        self._on_progress = on_progress
        self._clock = clock
        self._parts: dict[str, float] = {}
        self._last = Progress("executing", 0.0)
        self._node = ""
        self._node_since = 0.0
        self.node_seconds: dict[str, float] = {}
        self.ended = False

    def see(self, message: Mapping[str, Any]) -> None:
        """Take one message into account.

        `ended` is set by `executing` without a node: ComfyUI sends it once the history is written. Neither
        `execution_success` (sent before) nor `execution_error` (sent for a blocked branch too) means the end.
        """
        data = message.get("data")
        if not isinstance(data, dict) or data.get("prompt_id") != self._prompt_id:
            return
        match message.get("type"):
            case "execution_cached":
                self._parts |= dict.fromkeys(data.get("nodes") or (), 1.0)
            case "progress_state":
                self._parts |= {node_id: _part(state) for node_id, state in (data.get("nodes") or {}).items()}
            case "progress":
                self._parts[str(data.get("node"))] = _part(data)
            case "executing" if "node" in data:
                self._enter(data["node"])
        self._tell(self._fraction())

    def finish(self) -> None:
        """The run succeeded: all is done, also nodes that had nothing to do because no output needs them."""
        self._tell(1.0)

    def _enter(self, node_id: str | None) -> None:
        now = self._clock()
        if self._node:
            self.node_seconds[self._node] = self.node_seconds.get(self._node, 0.0) + now - self._node_since
        self._node, self._node_since = node_id or "", now
        self.ended = node_id is None

    def _fraction(self) -> float:
        return sum(self._parts.get(node_id, 0.0) for node_id in self._workflow) / len(self._workflow)

    def _tell(self, fraction: float) -> None:
        detail = self._workflow.get(self._node, {}).get("class_type", "") or self._last.detail
        progress = Progress("executing", max(self._last.fraction, min(1.0, fraction)), detail)
        if progress != self._last:
            self._last = progress
            self._on_progress(progress)


def _part(state: Mapping[str, Any]) -> float:
    """Done part of one node; a finished one is done whatever its counter says."""
    if state.get("state") == "finished":
        return 1.0
    return float(state["value"]) / float(state["max"]) if state.get("max") else 0.0

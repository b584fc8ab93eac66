"""How far a run is, from the messages of its socket."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from function.telemetry import Progress
from function.workflow import needed_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from function.telemetry import OnProgress
    from function.workflow import Workflow

_MOST_STEPS = 2**53


class RunProgress:
    """Turns ComfyUI's messages of one run into a fraction of the whole workflow.

    The fraction counts the nodes that the output nodes need: those from the cache and those that ended are done, a
    running one counts by its steps. ComfyUI's `progress_state` lists only nodes that began, so a fraction of that would
    overstate; nodes that a node adds while it runs are not counted. The fraction never goes back.

    Args:
        workflow: The graph that runs.
        prompt_id: ComfyUI's id of the run; messages of other runs are ignored.
        on_progress: Told of each change.
        outputs: Its output nodes; none: not known, and taken to be those that no node is linked to.
        clock: Monotonic seconds.
        time_of_day: Seconds since 1970.

    Attributes:
        node_seconds: Time of each node that ran, as seen from here.
        node_starts: When each of them began, in ms since 1970.
        ended: Whether the run is over.
    """

    def __init__(
        self,
        workflow: Workflow,
        *,
        prompt_id: str,
        on_progress: OnProgress,
        outputs: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self._workflow = workflow
        self._prompt_id = prompt_id
        self._on_progress = rising(on_progress)
        self._outputs = outputs
        self._needed = needed_nodes(workflow, outputs)
        self._clock = clock
        self._time_of_day = time_of_day
        self._parts: dict[str, _Steps] = {}
        self._last = Progress("executing", 0.0, nodes_total=len(self._needed))
        self._node = self._shown_node = ""
        self._node_since = 0.0
        self.node_seconds: dict[str, float] = {}
        self.node_starts: dict[str, int] = {}
        self.ended = False

    @property
    def node_id(self) -> str:
        """The node of the workflow that runs, "" before the first one."""
        return self._shown_node

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
                self._skip(data.get("nodes"))
            case "progress_state":
                self._parts |= dict(_states(data.get("nodes")))
            case "progress":
                self._parts[str(data.get("node"))] = _steps(data)
            case "executing" if "node" in data:
                self._enter(data["node"], data.get("display_node"))
            case _:
                return
        self._tell()

    def finish(self) -> None:
        """The run succeeded: all is done, also nodes that turned out not to be needed."""
        self._parts = dict.fromkeys(self._needed, _DONE)
        self._tell()

    def _skip(self, cached: object) -> None:
        """Neither nodes from the cache run nor those that only they would need."""
        found = frozenset(map(str, cached)) if isinstance(cached, list) else frozenset()
        visited = needed_nodes(self._workflow, self._outputs, done=found)
        self._parts |= dict.fromkeys(found | (self._needed - visited), _DONE)

    def _enter(self, node_id: object, shown: object) -> None:
        now = self._clock()
        if self._node:
            self.node_seconds[self._node] = self.node_seconds.get(self._node, 0.0) + now - self._node_since
        self.ended = node_id is None
        self._node, self._node_since = "" if self.ended else str(node_id), now
        if not self.ended:
            self._shown_node = str(shown or node_id)
            self.node_starts.setdefault(self._node, int(self._time_of_day() * 1000))

    def _tell(self) -> None:
        parts = [self._parts.get(node_id, _NOTHING) for node_id in self._needed]
        steps = self._parts.get(self._node, _NOTHING)
        class_type = self._workflow.get(self._shown_node, {}).get("class_type", "")
        progress = Progress(
            "executing",
            sum(part.fraction for part in parts) / max(1, len(parts)),
            detail=class_type,
            node_id=self._shown_node,
            class_type=class_type,
            step=int(steps.step) if steps.steps > 1 else 0,
            steps=int(steps.steps) if steps.steps > 1 else 0,
            nodes_done=sum(part.ended for part in parts),
            nodes_total=len(parts),
        )
        if progress != self._last:
            self._last = progress
            self._on_progress(progress)


@dataclass(frozen=True, slots=True)
class _Steps:
    """How far one node is; ComfyUI gives a node without steps one step."""

    step: float = 0.0
    steps: float = 0.0
    ended: bool = False

    @property
    def fraction(self) -> float:
        """Done part; a node that ended is done whatever its counter says."""
        if self.ended:
            return 1.0
        return self.step / self.steps if self.steps else 0.0


_NOTHING = _Steps()
_DONE = _Steps(ended=True)


def _states(nodes: object) -> Iterator[tuple[str, _Steps]]:
    for node_id, state in nodes.items() if isinstance(nodes, dict) else ():
        if isinstance(state, dict):
            yield node_id, _steps(state)


def _steps(state: Mapping[str, Any]) -> _Steps:
    """A counter as ComfyUI sends it; custom nodes send what they like, so it is kept within its bounds."""
    steps = _number(state.get("max"))
    return _Steps(min(_number(state.get("value")), steps), steps, ended=state.get("state") == "finished")


def _number(value: object) -> float:
    """0 for what is no number of steps: JSON's NaN and infinities fail the comparison too."""
    return float(value) if isinstance(value, int | float) and 0 <= value < _MOST_STEPS else 0.0


def rising(on_progress: OnProgress) -> OnProgress:
    """The observer, told of no fraction that is lower than one before."""
    highest = 0.0

    def tell(progress: Progress) -> None:
        nonlocal highest
        highest = max(highest, min(1.0, progress.fraction))
        on_progress(progress if progress.fraction == highest else replace(progress, fraction=highest))

    return tell

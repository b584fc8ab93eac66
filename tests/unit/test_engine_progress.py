"""The fraction of a run, from messages."""

from __future__ import annotations

from typing import Any

import pytest

from function.engine.progress import RunProgress
from function.telemetry import Progress

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "Class1", "inputs": {}},
    "2": {"class_type": "Class2", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "Class3", "inputs": {"image": ["2", 0]}},
    "4": {"class_type": "Class4", "inputs": {"image": ["3", 0]}},
}


class Watched:
    """A run with a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[Progress] = []
        self.run = RunProgress(WORKFLOW, prompt_id="p", on_progress=self.seen.append, clock=lambda: self.now)

    def send(self, kind: str, prompt_id: str = "p", **data: Any) -> None:
        """One message of the engine."""
        self.run.see({"type": kind, "data": {"prompt_id": prompt_id, **data}})


@pytest.fixture
def watched() -> Watched:
    """A run that has not begun."""
    return Watched()


def test_cached_nodes_are_done(watched: Watched) -> None:
    """Nodes from the cache count as done, of all nodes that the output nodes need."""
    watched.send("execution_cached", nodes=["1", "2"])
    assert watched.seen == [Progress("executing", 0.5, nodes_done=2, nodes_total=4)]


def test_what_only_cached_nodes_need_is_done(watched: Watched) -> None:
    """ComfyUI doesn't look beyond a node whose result it has, so those before it never run."""
    watched.send("execution_cached", nodes=["3"])
    assert (watched.seen[-1].nodes_done, watched.seen[-1].fraction) == (3, 0.75)


def test_steps_count_as_part_of_a_node(watched: Watched) -> None:
    """A running node counts by its steps and is named with its class."""
    watched.send("executing", node="3", display_node="3")
    watched.send("progress", node="3", value=5, max=10)
    assert watched.seen[-1] == Progress(
        "executing", 0.125, "Class3", node_id="3", class_type="Class3", step=5, steps=10, nodes_total=4
    )


def test_a_node_without_steps_has_none(watched: Watched) -> None:
    """ComfyUI gives it one step; half of it counts all the same."""
    watched.send("executing", node="3", display_node="3")
    watched.send("progress_state", nodes={"3": {"value": 0.5, "max": 1.0, "state": "running"}})
    assert (watched.seen[-1].step, watched.seen[-1].steps, watched.seen[-1].fraction) == (0, 0, 0.125)


def test_fraction_is_of_the_whole_workflow(watched: Watched) -> None:
    """One finished node of four is a quarter, though the engine lists only that and one that it added."""
    finished = {"value": 1, "max": 1, "state": "finished"}
    watched.send("progress_state", nodes={"1": finished, "1.0.7": finished})
    assert (watched.seen[-1].fraction, watched.seen[-1].nodes_done, watched.seen[-1].nodes_total) == (0.25, 1, 4)


def test_a_node_that_another_one_added_shows_as_that_one(watched: Watched) -> None:
    """The workflow's sender knows no other; its steps are those of the node that runs."""
    watched.send("executing", node="2.0.1", display_node="2")
    watched.send("progress", node="2.0.1", value=1, max=4)
    last = watched.seen[-1]
    assert (last.node_id, last.class_type, last.step, last.steps) == ("2", "Class2", 1, 4)


def test_nodes_that_no_output_needs_do_not_count() -> None:
    """Nor do output nodes' neighbours that nobody asked for."""
    seen: list[Progress] = []
    run = RunProgress(WORKFLOW, prompt_id="p", on_progress=seen.append, outputs=["2"])
    run.see({"type": "executing", "data": {"prompt_id": "p", "node": "1"}})
    assert seen[-1].nodes_total == 2


def test_fraction_never_goes_back(watched: Watched) -> None:
    """A node that begins anew does not lower the fraction."""
    watched.send("progress", node="1", value=8, max=10)
    watched.send("progress", node="1", value=1, max=10)
    assert [step.fraction for step in watched.seen] == [0.2, 0.2]


def test_finish_is_whole(watched: Watched) -> None:
    """A run that succeeded is done, also with nodes that never ran."""
    watched.run.finish()
    assert watched.seen == [Progress("executing", 1.0, nodes_done=4, nodes_total=4)]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("progress", {"node": "1", "value": None, "max": "x"}),
        ("progress", {"node": ["1"], "value": 1e400, "max": -1}),
        ("progress", {"node": "1", "value": 5, "max": 0}),
        ("progress_state", {"nodes": {"1": None}}),
        ("progress_state", {"nodes": [1]}),
        ("execution_cached", {"nodes": {"1": 1}}),
        ("execution_cached", {"nodes": [["1"]]}),
    ],
)
def test_what_custom_nodes_send_is_survived(watched: Watched, kind: str, data: dict[str, Any]) -> None:
    """They send ComfyUI's messages with values of their own; nothing is done by that."""
    watched.send(kind, **data)
    assert all(step.fraction == 0 for step in watched.seen)


def test_only_executing_without_node_ends(watched: Watched) -> None:
    """Neither success nor error nor another run's end is the end of this run."""
    watched.send("execution_success")
    watched.send("execution_error", exception_type="ExecutionBlocked")
    watched.send("executing", prompt_id="other", node=None)
    watched.send("executing")
    assert not watched.run.ended
    watched.send("executing", node=None)
    assert watched.run.ended


def test_time_of_nodes(watched: Watched) -> None:
    """A node's time runs from its own message to the next node's, and adds up when it is entered again."""
    for now, node in [(0, "1"), (2, "2"), (3, "1"), (7, None)]:
        watched.now = now
        watched.send("executing", node=node)
    assert watched.run.node_seconds == {"1": 6, "2": 1}


@pytest.mark.parametrize("message", [{}, {"type": "status"}, {"type": "progress", "data": None}, {"data": []}])
def test_foreign_messages_are_ignored(watched: Watched, message: dict[str, Any]) -> None:
    """Messages of another shape change nothing."""
    watched.run.see(message)
    assert not watched.seen

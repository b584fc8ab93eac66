"""Which nodes a workflow may use and how much they may make, by setting."""

from __future__ import annotations

from typing import Any

import pytest

from function.errors import BudgetExceededError, NodeRefusedError
from function.validation.policy import Policy, check_policy


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    """One node of a workflow."""
    return {"class_type": class_type, "inputs": inputs}


def refused(policy: Policy, *classes: str, replacements: dict[str, str] | None = None) -> str:
    """The message for a workflow of these classes, "" where it passes."""
    workflow = {str(number): node(name) for number, name in enumerate(classes)}
    try:
        check_policy(workflow, policy, replacements=replacements or {})
    except NodeRefusedError as error:
        return error.message
    return ""


def test_a_denied_class_is_refused_with_node_class_and_setting() -> None:
    """The pattern is named too."""
    message = refused(Policy(denied_nodes=("Load*", "Exec*")), "SaveImage", "ExecutePython")
    assert message == "node 1: class 'ExecutePython' is refused by DENIED_NODES, Exec*"


def test_only_allowed_classes_pass_where_some_are_allowed() -> None:
    """Names are compared as ComfyUI does, upper and lower case apart."""
    policy = Policy(allowed_nodes=("Save*", "LoadImage"))
    assert refused(policy, "SaveImage", "LoadImage") == ""
    assert refused(policy, "loadimage") == "node 0: class 'loadimage' is not among ALLOWED_NODES"


def test_a_denied_class_stays_denied_if_it_is_allowed() -> None:
    """DENIED_NODES has the last word."""
    assert "DENIED_NODES" in refused(Policy(allowed_nodes=("*",), denied_nodes=("SaveImage",)), "SaveImage")


def test_a_class_is_refused_under_the_name_that_the_engine_replaces() -> None:
    """An old name is no way around the policy."""
    assert "'New'" in refused(Policy(denied_nodes=("New",)), "Old", replacements={"Old": "New"})


def test_a_refusal_is_final_and_has_a_code() -> None:
    """The same job would be refused again on every pod with these settings."""
    for error, code in ((NodeRefusedError, "node_refused"), (BudgetExceededError, "budget_exceeded")):
        assert (error.code, error.status, error.retryable) == (code, 422, False)


def demand(policy: Policy, **workflow: dict[str, Any]) -> str:
    """The message for a workflow that asks for too much, "" where it passes."""
    try:
        check_policy(workflow, policy, replacements={})
    except BudgetExceededError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("inputs", "pixels"),
    [
        ({"width": 10, "height": 10}, 100),
        ({"width": "10", "height": 10.9, "batch_size": 3}, 300),
        ({"width": 10, "height": 10, "batch_size": 2, "length": 5}, 1000),
        ({"width": {"__value__": 10}, "height": 10, "video_frames": 4}, 400),
        ({"width": ["p", 0], "height": ["q", 0]}, 70),
    ],
)
def test_pixels_are_width_x_height_x_batch_x_frames(inputs: dict[str, Any], pixels: int) -> None:
    """Numbers in any form that the engine takes, also by way of ComfyUI's Primitive nodes."""
    rest = {
        "p": node("PrimitiveInt", value=7),
        "q": node("PrimitiveInt", value=["r", 0]),
        "r": node("PrimitiveFloat", value="10"),
    }
    assert demand(Policy(max_pixels=pixels), e=node("Empty", **inputs), **rest) == ""
    message = demand(Policy(max_pixels=pixels - 1), e=node("Empty", **inputs), **rest)
    assert f"node e (Empty): asks for {pixels} pixels" in message
    assert message.endswith(f"MAX_PIXELS={pixels - 1} is the most")


def test_batches_and_frames_have_limits_of_their_own() -> None:
    """A repeater's amount is a batch; a length counts only beside width and height."""
    policy = Policy(max_batch=4, max_frames=16)
    assert "MAX_BATCH=4" in demand(policy, a=node("EmptyLatentImage", batch_size=5))
    assert "MAX_BATCH=4" in demand(policy, a=node("RepeatLatentBatch", amount=5))
    assert "MAX_FRAMES=16" in demand(policy, a=node("EmptyVideo", width=1, height=1, length=17))
    assert demand(policy, a=node("TrimAudio", length=100), b=node("Sharpen", amount=9)) == ""


@pytest.mark.parametrize("value", [None, "wide", ["x", 0], ["a", 0], [], [[], 0], {}, float("nan")])
def test_what_the_graph_does_not_tell_is_no_demand(value: object) -> None:
    """Links to nodes that compute, cycles and nonsense are left to the engine."""
    assert (
        demand(Policy(max_pixels=1, max_batch=1), a=node("PrimitiveInt", width=value, height=9, value=["a", 0])) == ""
    )


def test_numbers_that_are_too_long_to_print_are_refused_like_others() -> None:
    """The message stays one short line."""
    message = demand(Policy(max_pixels=1), a=node("x" * 10_000, width=10**4000, height=10**4000, batch_size=10**4000))
    assert message.endswith("MAX_PIXELS=1 is the most")
    assert len(message) < 400


def test_without_limits_everything_passes() -> None:
    """0 is unlimited."""
    assert demand(Policy(), a=node("Empty", width=2**40, height=2**40, batch_size=2**40)) == ""

"""The check before the engine, beside what a real ComfyUI answered to the same workflows."""

from __future__ import annotations

from typing import Any

import pytest

from function.errors import InvalidWorkflowError
from function.validation.definitions import parse_definitions
from function.validation.graph import check_graph
from function.workflow import parse_workflow
from tests.support.engine import RECORDED, recorded

# In the recordings but not in their object_info.json.
LOTUS = {"input": {"required": {}}, "output": ["CONDITIONING"], "output_node": False, "python_module": "comfy_extras.x"}
DEFINITIONS = parse_definitions(recorded("object_info") | {"LotusConditioning": LOTUS}, {})

LEFT_TO_THE_ENGINE = {
    "missing_input_image": "input files are brought, or found missing, by name",
    "missing_CheckpointLoaderSimple": "models are brought, or found missing, by name",
    "missing_LoraLoaderModelOnly": "see above",
    "missing_UNETLoader": "see above",
    "missing_VAELoader": "see above",
    "one_good_one_bad_output": "its bad output lacks an input file",
}
TOLD_OTHERWISE = {
    "unknown_node": "ComfyUI names the node in its message only",
    "missing_class_type": "the graph is not in API format",
    "missing_inputs_key": "the graph is not in API format",
    "cycle": "this ComfyUI refuses it without a word; the error is that of 0.33",
}


def exchanges() -> dict[str, dict[str, Any]]:
    """Each recorded POST /prompt that carried a graph, by name."""
    found = dict(recorded("validation"))
    for path in RECORDED.glob("validation_*.json"):
        found[path.stem.removeprefix("validation_")] = recorded(path.stem)
    return {name: one for name, one in found.items() if isinstance(one.get("json"), dict) and "prompt" in graph_of(one)}


def graph_of(exchange: dict[str, Any]) -> dict[str, Any]:
    """The body of the request."""
    body = exchange.get("request_json")
    return body if isinstance(body, dict) else {}


def types_of(node_errors: dict[str, Any]) -> dict[str, set[str]]:
    """Node id to the types of its errors."""
    return {node_id: {error["type"] for error in node["errors"]} for node_id, node in node_errors.items()}


def judge(workflow: object) -> dict[str, Any] | None:
    """The error's details; None where the check lets the workflow pass."""
    try:
        check_graph(parse_workflow(workflow), DEFINITIONS)
    except InvalidWorkflowError as error:
        return error.details
    return None


def test_the_recordings_hold_what_this_suite_is_about() -> None:
    """Accepted and refused ones, and every exception named above."""
    statuses = [one["status"] for one in exchanges().values()]
    assert min(statuses.count(200), statuses.count(400)) >= 10
    assert exchanges().keys() >= LEFT_TO_THE_ENGINE.keys() | TOLD_OTHERWISE.keys()


@pytest.mark.parametrize("name", exchanges())
def test_the_verdict_is_that_of_the_real_core(name: str) -> None:
    """What it accepted passes; what it refused is refused with errors of the same types at the same nodes."""
    answer = exchanges()[name]["json"]
    ours = judge(graph_of(exchanges()[name])["prompt"])
    if name in LEFT_TO_THE_ENGINE or (not answer.get("error") and not answer["node_errors"]):
        assert ours is None
    elif name in TOLD_OTHERWISE:
        assert ours is not None
    else:
        assert ours is not None
        node_errors = ours.get("node_errors", {})
        assert types_of(node_errors) == types_of(answer["node_errors"])
        for node_id, node in answer["node_errors"].items():
            assert node_errors[node_id]["class_type"] == node["class_type"]
            assert node_errors[node_id]["dependent_outputs"] == node["dependent_outputs"]

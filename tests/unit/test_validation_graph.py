"""What the check before the engine judges, and what it leaves to the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from function.errors import InvalidWorkflowError
from function.validation.definitions import parse_definitions
from function.validation.graph import check_graph

CORE = "comfy_extras.nodes_test"
CUSTOM = "custom_nodes.pack"


def entry(
    inputs: dict[str, Any] | None = None,
    outputs: tuple[Any, ...] = ("IMAGE",),
    *,
    optional: dict[str, Any] | None = None,
    module: str = CORE,
    is_output: bool = False,
) -> dict[str, Any]:
    """One class as `/object_info` shows it."""
    return {
        "input": {"required": inputs or {}, "optional": optional or {}, "hidden": {"prompt": "PROMPT"}},
        "output": list(outputs),
        "python_module": module,
        "output_node": is_output,
    }


SIZE = ["INT", {"min": 1, "max": 100}]
MODE = [["fast", "slow"], {}]
NODES = {
    "Make": entry({"size": SIZE}, ("IMAGE", "MASK")),
    "MakeCustom": entry({"size": SIZE, "mode": MODE}, module=CUSTOM),
    "Choose": entry({"mode": MODE}),
    "Save": entry({"images": ["IMAGE", {}]}, (), is_output=True),
    "Any": entry({"source": ["*", {}]}, (), is_output=True),
    "Wide": entry({"source": ["LATENT, IMAGE"]}, (), is_output=True),
    "Latent": entry({"samples": ["LATENT"]}, (), is_output=True),
    "LatentCustom": entry({"samples": ["LATENT"]}, (), module=CUSTOM, is_output=True),
    "Switch": entry({"a": ["COMFY_MATCHTYPE_V3", {}]}, ("COMFY_MATCHTYPE_V3",)),
    "Grow": entry({"images": ["COMFY_AUTOGROW_V3", {"template": {}}]}),
    "Load": entry(
        {"name": [["a.safetensors"], {}], "image": [["cats"], {"image_upload": True}], "kind": ["COMBO", {}]}
    ),
    "Lazy": entry({"on": ["IMAGE", {"lazy": True}], "off": ["IMAGE", {"lazy": False}]}),
    "LazyCustom": entry(optional={"any_1": ["*", {"lazy": True}]}, module=CUSTOM),
    "Strange": entry({"x": "STRING", "y": []}, optional={"size": SIZE}),
}
DEFINITIONS = parse_definitions(
    NODES,
    {"Gone": [{"new_node_id": "Make"}], "GoneSave": [{"new_node_id": "Save"}], "Lost": [{"new_node_id": "Nowhere"}]},
)


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    """One node of a workflow."""
    return {"class_type": class_type, "inputs": inputs}


def errors_of(workflow: dict[str, Any]) -> dict[str, list[str]]:
    """Node id to the types of its errors; empty where the workflow passes."""
    try:
        check_graph(workflow, DEFINITIONS)
    except InvalidWorkflowError as error:
        return {key: [one["type"] for one in told["errors"]] for key, told in error.details["node_errors"].items()}
    return {}


GOOD = {"1": node("Make", size=5), "2": node("Save", images=["1", 0])}


def test_an_unknown_class_is_named_with_its_node_and_so_are_all_others() -> None:
    """As ComfyUI 0.33 does it for the first one."""
    with pytest.raises(InvalidWorkflowError, match=r"node 7 \(NoSuch\): missing_node_type") as error:
        check_graph(GOOD | {"7": node("NoSuch"), "8": node("Lost")}, DEFINITIONS)
    assert list(error.value.details["node_errors"]) == ["7", "8"]
    assert error.value.details["node_errors"]["7"]["errors"][0]["extra_info"] == {
        "node_id": "7",
        "class_type": "NoSuch",
    }


def test_of_a_class_that_the_engine_may_have_nothing_is_judged() -> None:
    """It may be an output node; other nodes are judged, and what it is linked to is the engine's to follow."""
    workflow = {"1": node("Make", size=0), "2": node("Hidden", images=["1", 0], other=["9", 0])}
    check_graph(workflow, DEFINITIONS, undescribed={"Hidden"})
    with pytest.raises(InvalidWorkflowError, match=r"node 1 \(Make\), input size: value_smaller_than_min"):
        check_graph(workflow | {"3": node("Save", images=["1", 0])}, DEFINITIONS, undescribed={"Hidden"})
    with pytest.raises(InvalidWorkflowError, match="missing_node_type"):
        check_graph(workflow | {"3": node("NoSuch")}, DEFINITIONS, undescribed={"Hidden"})


def test_a_workflow_without_output_node_is_told_what_to_add() -> None:
    """In the words that the engine's refusal is told in."""
    with pytest.raises(InvalidWorkflowError, match="add one that saves"):
        check_graph({"1": node("Make", size=5)}, DEFINITIONS)


@pytest.mark.parametrize(
    "source",
    [
        node("Make", size="5"),
        node("Make", size=5.7),
        node("Make", size=True),
        node("Make", size={"__value__": 5}),
        node("Make", size=5, comfyfn_etag="x"),
        node("MakeCustom", size=-5, mode="odd"),
        node("Choose", mode="slow"),
        node("Load", name="b.safetensors", image="dogs", kind="odd"),
        node("Grow", **{"images.image0": ["3", 0]}),
        node("Grow"),
        node("Gone"),
        node("Strange"),
    ],
)
def test_what_the_engine_may_accept_passes(source: dict[str, Any]) -> None:
    """Numeric text, extra inputs, custom nodes' values, files, what V3 nodes make up, and classes it replaces."""
    assert errors_of(GOOD | {"1": source, "3": node("Make", size=5)}) == {}


@pytest.mark.parametrize(
    ("source", "errors"),
    [
        (node("Make"), ["required_input_missing"]),
        (node("MakeCustom"), ["required_input_missing", "required_input_missing"]),
        (node("Make", size=0), ["value_smaller_than_min"]),
        (node("Make", size="101"), ["value_bigger_than_max"]),
        (node("Make", size=None), ["invalid_input_type"]),
        (node("Make", size=float("inf")), ["invalid_input_type"]),
        (node("Make", size=["9", 0]), ["exception_during_inner_validation"]),
        (node("Make", size=[1, 0]), ["exception_during_inner_validation"]),
        (node("Make", size=["1"]), ["bad_linked_input"]),
        (node("Choose", mode="odd"), ["value_not_in_list"]),
        (node("Choose", mode=["2", 0]), ["exception_during_inner_validation", "dependency_cycle"]),
        (node("Strange", size=0), ["value_smaller_than_min"]),
    ],
)
def test_what_the_engine_would_refuse_is_refused_in_its_words(source: dict[str, Any], errors: list[str]) -> None:
    """Each error stands at the node that has it."""
    assert errors_of(GOOD | {"1": source})["1"] == errors


@pytest.mark.parametrize(
    ("target", "slot", "errors"),
    [
        (lambda link: node("Save", images=link), 1, ["return_type_mismatch"]),
        (lambda link: node("Save", images=link), 2, ["exception_during_validation"]),
        (lambda link: node("Save", images=link), "0", ["exception_during_validation"]),
        (lambda link: node("Save", images=link), -2, []),
        (lambda link: node("Any", source=link), 1, []),
        (lambda link: node("Wide", source=link), 0, []),
        (lambda link: node("Wide", source=link), 1, ["return_type_mismatch"]),
        (lambda link: node("Latent", samples=link), 0, ["return_type_mismatch"]),
    ],
)
def test_links_must_fit(target: Any, slot: object, errors: list[str]) -> None:
    """A comma list needs one type in common; `*` takes all."""
    assert errors_of({"1": node("Make", size=5), "2": target(["1", slot])}).get("2", []) == errors


def test_types_and_slots_of_custom_nodes_are_left_to_the_engine() -> None:
    """Their types may be equal to anything, their outputs of any number, and their links checked by themselves."""
    assert errors_of({"1": node("MakeCustom", size=5, mode="x"), "2": node("Save", images=["1", 9])}) == {}
    assert errors_of({"1": node("MakeCustom", size=5, mode="x"), "2": node("Latent", samples=["1", 0])}) == {}
    assert errors_of({"1": node("Make", size=5), "2": node("LatentCustom", samples=["1", 0])}) == {}


def test_links_are_followed_through_switches() -> None:
    """A switch fits anything, and what it needs is judged."""
    workflow = {"1": node("Make", size=0), "2": node("Switch", a=["1", 1]), "3": node("Save", images=["2", 0])}
    assert errors_of(workflow) == {"1": ["value_smaller_than_min"]}


def test_nodes_that_no_output_needs_are_not_judged() -> None:
    """As in ComfyUI, only their class must exist."""
    assert errors_of(GOOD | {"3": node("Make", size=-1), "4": node("Make", size=["4", 0])}) == {}


def test_a_bad_branch_is_refused_although_another_is_good() -> None:
    """A dropped branch is no success; the error tells which outputs need the node."""
    workflow = GOOD | {"3": node("Make", size=0), "4": node("Save", images=["3", 0]), "5": node("Any", source=["3", 0])}
    with pytest.raises(InvalidWorkflowError) as error:
        check_graph(workflow, DEFINITIONS)
    assert error.value.details["node_errors"]["3"]["dependent_outputs"] == ["4", "5"]


def test_a_cycle_is_told_with_its_path() -> None:
    """Each of its nodes has the error."""
    workflow = {"1": node("Switch", a=["2", 0]), "2": node("Switch", a=["1", 0]), "3": node("Save", images=["1", 0])}
    with pytest.raises(InvalidWorkflowError, match=r"1 \(Switch\) -> 2 \(Switch\)|2 \(Switch\) -> 1 \(Switch\)"):
        check_graph(workflow, DEFINITIONS)
    assert errors_of(workflow) == {"1": ["dependency_cycle"], "2": ["dependency_cycle"]}


def test_a_link_to_nowhere_is_refused_in_whatever_input_the_run_would_follow() -> None:
    """ComfyUI checks no undeclared input, and its only worker thread ends when it follows such a link."""
    loose = node("Make", size=5, extra=["9", 0])
    inner, outer = ["exception_during_inner_validation"], ["exception_during_validation"]
    assert errors_of(GOOD | {"1": loose}) == {"1": inner}
    assert errors_of(GOOD | {"1": node("Make", size=5, extra=["3", 0]), "3": loose}) == {"3": inner}
    assert errors_of(GOOD | {"2": node("Save", images=["1", 0], extra=["9", 0])}) == {"2": outer}
    assert errors_of(GOOD | {"1": node("Make", size=["9", 0])}) == {"1": inner}
    unchecked = {"1": node("Make", size=5, extra=["3", 0]), "3": node("Make", size=["9", 0])}
    assert errors_of(GOOD | unchecked) == {"3": inner}
    with pytest.raises(InvalidWorkflowError) as error:
        check_graph(GOOD | unchecked, DEFINITIONS)
    assert error.value.details["node_errors"]["3"]["dependent_outputs"] == ["2"]


@pytest.mark.parametrize(
    "source",
    [
        node("Make", size=5, extra=["9", "x"], other=["9"], more=[9, 0], last=["9", 0, 0]),
        node("Make", size=5, extra=["3", 0]),
        node("LazyCustom", any_1=["1", 0], any_2=["9", 0]),
        node("Gone", extra=["9", 0]),
    ],
)
def test_what_a_run_follows_not_or_only_when_asked_passes(source: dict[str, Any]) -> None:
    """Lists that are no links, values of nodes behind an undeclared input, and inputs that a lazy switch makes up."""
    workflow = GOOD | {"0": source, "1": node("Make", size=5, extra=["0", 0]), "3": node("Make", size=-1)}
    if source["class_type"] == "LazyCustom":
        workflow["1"] = node("Make", size=5)
        workflow["2"] = node("Save", images=["0", 0])
    assert errors_of(workflow) == {}


def test_a_cycle_through_undeclared_inputs_is_told_unless_a_lazy_input_is_in_it() -> None:
    """A run that never asks for that input never meets the cycle."""
    workflow = GOOD | {"1": node("Make", size=5, extra=["3", 0]), "3": node("Switch", a=["1", 0])}
    assert errors_of(workflow) == {"1": ["dependency_cycle"], "3": ["dependency_cycle"]}
    lazy = {"3": node("Lazy", on=["1", 0], off=["4", 0]), "4": node("Make", size=5)}
    assert errors_of(workflow | lazy) == {}
    assert errors_of(workflow | lazy | {"4": node("Make", size=5, extra=["1", 0])}).keys() == {"1", "3", "4"}


def test_a_class_that_comfyui_replaces_counts_as_what_it_becomes() -> None:
    """Its own inputs are not judged, and it may be the output node."""
    assert errors_of({"1": node("GoneSave", old=["9", 9])}) == {}


def test_a_chain_of_any_length_is_judged() -> None:
    """No recursion: ten thousand nodes are fine."""
    chain = {str(number): node("Switch", a=[str(number - 1), 0]) for number in range(1, 10_000)}
    workflow = {"0": node("Make", size=0)} | chain | {"end": node("Save", images=["9999", 0])}
    assert errors_of(workflow) == {"0": ["value_smaller_than_min"]}


def test_an_answer_stays_short_whatever_the_workflow_holds() -> None:
    """Long values are cut, many errors are counted."""
    makers = {str(number): node("Make", size="x" * 10_000) for number in range(200)}
    makers["0"] = node("Make", size=float("inf"))
    savers = {f"s{number}": node("Save", images=[str(number), 0]) for number in range(200)}
    with pytest.raises(InvalidWorkflowError, match="; and 45 more") as error:
        check_graph(makers | savers, DEFINITIONS)
    assert len(error.value.details["node_errors"]) == 50
    assert len(error.value.message) < 3000
    json.dumps(error.value.details, allow_nan=False)

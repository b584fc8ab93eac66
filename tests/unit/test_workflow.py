"""The graph: checked, searched, rewritten."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from function.errors import InputRefusedError, InvalidWorkflowError
from function.workflow import (
    JOB_STAMP,
    check_relative,
    confine_outputs,
    find_input,
    literal_inputs,
    parse_workflow,
    replace_inputs,
    set_input,
    without_url_secrets,
)

GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x/y"}},
}


def test_a_graph_in_api_format_is_taken_as_it_is() -> None:
    """Nothing is added or dropped, `_meta` neither."""
    graph = {**GRAPH, "3": {"class_type": "Anything", "inputs": {}, "_meta": {"title": "t"}}}
    assert parse_workflow(graph) == graph


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ([], "expected an object of node id to node"),
        ("graph", "expected an object of node id to node"),
        ({}, "no output node"),
        ({"nodes": [], "links": []}, "Workflow > Export (API)"),
        ({"last_node_id": 3, "nodes": [{"id": 1}], "links": [], "version": 0.4}, "Workflow > Export (API)"),
        ({"1": "LoadImage"}, "node 1 is not an object"),
        ({"1": {"inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": 5, "inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": "LoadImage"}}, "node 1 (LoadImage) has no inputs object"),
        ({"1": {"class_type": "LoadImage", "inputs": []}}, "node 1 (LoadImage) has no inputs object"),
    ],
)
def test_what_is_no_graph_is_explained(graph: object, says: str) -> None:
    """One line names what is wrong, and the way out of the editor's format."""
    with pytest.raises(InvalidWorkflowError) as error:
        parse_workflow(graph)
    assert says in error.value.message


def test_literals_are_found_and_links_are_not() -> None:
    """Only strings that the sender wrote can name files."""
    assert list(literal_inputs(GRAPH)) == [
        ("1", "LoadImage", "image", "a.png"),
        ("2", "SaveImage", "filename_prefix", "x/y"),
    ]


def test_rewriting_leaves_the_original_alone() -> None:
    """Functions return new graphs."""
    before = copy.deepcopy(GRAPH)
    assert replace_inputs(GRAPH, {("1", "image"): "b.png"})["1"]["inputs"]["image"] == "b.png"
    assert confine_outputs(GRAPH, "job") != GRAPH
    assert before == GRAPH


def test_outputs_move_into_the_job_folder_and_carry_the_job() -> None:
    """Prefix and stamp make a saver of one job differ from the saver of every other."""
    confined = confine_outputs(GRAPH, "j1")
    assert confined["2"]["inputs"] == {"images": ["1", 0], "filename_prefix": "j1/x/y", JOB_STAMP: "j1"}
    assert confined["1"] == GRAPH["1"]


def test_a_prefix_that_is_a_link_is_kept_and_stamped() -> None:
    """It can't be moved; the stamp alone keeps the engine's cache from answering."""
    graph = replace_inputs(GRAPH, {("2", "filename_prefix"): ["1", 0]})
    confined = confine_outputs(graph, "j1")
    assert (confined["2"]["inputs"]["filename_prefix"], confined["2"]["inputs"][JOB_STAMP]) == (["1", 0], "j1")


@pytest.mark.parametrize(
    "name", ["a", "a.png", "a/b.png", "ä b/ç+%2F.png", "..a/b..", "a/.hidden", "%date:yyyy%/x", "a/"]
)
def test_names_inside_their_folder_are_allowed(name: str) -> None:
    """Spaces, dots within names and other scripts are fine."""
    check_relative(name, what="name")


@pytest.mark.parametrize(
    "name",
    [
        *("", "/a", "//a", "..", ".", "../a", "a/../b", "a/..", "a//b", "./a", "a\\b", "C:x", "a\x00b", "a\nb"),
        *("a.png [output]", "a.png [temp]", "a.png [input] "),
    ],
)
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    """The refusal names what was being named."""
    with pytest.raises(InputRefusedError, match="node 5, input image: "):
        check_relative(name, what="node 5, input image")


def test_an_input_can_be_set_by_its_path() -> None:
    """As `--set` does."""
    assert set_input(GRAPH, "2.filename_prefix", "z")["2"]["inputs"]["filename_prefix"] == "z"


def test_names_of_nodes_and_inputs_may_have_dots() -> None:
    """V3 nodes have inputs such as `resize.width`; a path is divided where there is such a node and input."""
    graph = {"1": {"class_type": "X", "inputs": {"a.b": 1, "c": 2}}, "1.a": {"class_type": "X", "inputs": {"c": 3}}}
    assert [find_input(graph, path) for path in ("1.a.b", "1.c", "1.a.c")] == [("1", "a.b"), ("1", "c"), ("1.a", "c")]


@pytest.mark.parametrize(
    ("path", "says"), [("9.x", "no node '9'"), ("1.seed", "node 1 has no input 'seed'"), ("1", "no node ''")]
)
def test_setting_what_is_not_there_names_what_is(path: str, says: str) -> None:
    """A typo is not a new input."""
    with pytest.raises(InvalidWorkflowError) as error:
        set_input(GRAPH, path, 1)
    assert says in error.value.message


def test_what_is_stored_of_a_workflow_holds_no_token_of_a_url() -> None:
    """Queries of URLs are cut off; other texts, question marks too, stay."""
    graph = {
        "1": {"class_type": "X", "inputs": {"a": "https://h/m.safetensors?token=t", "b": "what? https", "c": 1}},
        "2": {"class_type": "X", "inputs": {"a": "S3://b/k?x=1", "b": "https://h/m.safetensors"}},
    }
    stored = without_url_secrets(graph)
    assert stored["1"]["inputs"] == {"a": "https://h/m.safetensors?...", "b": "what? https", "c": 1}
    assert stored["2"]["inputs"] == {"a": "S3://b/k?...", "b": "https://h/m.safetensors"}

"""The check before the engine refuses nothing that an engine takes, and leaves to it only what it can't know."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from function.engine.embedded.folders import folders_from
from function.engine.embedded.nodes.catalogue import NODES
from function.engine.embedded.nodes.node import COMBO, Input, describe
from function.engine.embedded.options import parse_options
from function.engine.embedded.validation import Verdict, validate
from function.errors import InvalidWorkflowError
from function.validation.definitions import Definitions, parse_definitions
from function.validation.graph import check_graph
from tests.support.engine import DATA

if TYPE_CHECKING:
    from function.engine.embedded.folders import Folders

IMAGE = "in_64x48.png"
KNOWN_TO_THE_ENGINE_ONLY = {"custom_validation_failed", "value_not_in_list"}
ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**70, 0.5, float("nan"), float("inf"), "", "64", "1.5", "abc"),
    *({}, {"__value__": 3}, {"__value__": [1]}, [], ["0"], ["0", 0], ["0", -1], ["0", 9], ["0", "0"], ["none", 0]),
    *([0, 0], [["0"], 0], ["0", 0, 0]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Directories with one image."""
    base = tmp_path_factory.mktemp("engine")
    (base / "input").mkdir()
    shutil.copyfile(DATA / "cases" / IMAGE, base / "input" / IMAGE)
    return folders_from(parse_options(["--base-directory", str(base)]))


@pytest.fixture(scope="module")
def definitions(folders: Folders) -> Definitions:
    """What that engine says of its nodes, by way of JSON."""
    object_info = json.loads(json.dumps({name: describe(node, folders) for name, node in NODES.items()}))
    return parse_definitions(object_info, {})


def values(one: Input, size: int) -> st.SearchStrategy[Any]:
    """Mostly what the input takes, links to earlier nodes among it, sometimes anything else."""
    nodes = st.integers(0, max(0, size - 1)).map(str)
    options = one.options or {}
    plain: st.SearchStrategy[Any] = st.sampled_from(
        [options[key] for key in ("default", "min", "max") if key in options] or [0, "x"]
    )
    if one.type == COMBO:
        plain = st.sampled_from([*one.choices, "odd"] if isinstance(one.choices, tuple) else [IMAGE, "taesd", "odd"])
    elif one.type not in {"INT", "FLOAT", "STRING", "BOOLEAN"}:
        plain = st.tuples(nodes, st.integers(0, 1)).map(list)
    return st.one_of(plain, plain, plain, plain, plain, plain, st.sampled_from(ODD_VALUES))


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """Graphs of the embedded engine's nodes; sources come first, so that most links fit somewhere."""
    names = draw(st.lists(st.sampled_from(sorted(NODES)), max_size=5))
    names = ["EmptyImage", *names, draw(st.sampled_from(["SaveImage", "PreviewImage", "PreviewAny"]))]
    graph: dict[str, Any] = {}
    for node_id, name in enumerate(names):
        node = NODES[name]
        inputs = {
            key: draw(values(one, node_id))
            for key, one in node.all_inputs().items()
            if key in node.inputs or draw(st.booleans())
        }
        for key in draw(st.sets(st.sampled_from([*inputs, "extra"]), max_size=1)) if draw(st.booleans()) else ():
            inputs.pop(key, None)
        graph[str(node_id)] = {"class_type": name, "inputs": inputs}
    return graph


def is_complete(workflow: dict[str, Any], verdict: Verdict) -> bool:
    """Whether the engine runs every output."""
    return {node_id for node_id, node in workflow.items() if NODES[node["class_type"]].is_output} <= set(
        verdict.outputs
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workflow=workflows())
def test_the_check_and_the_embedded_engine_agree(
    workflow: dict[str, Any], folders: Folders, definitions: Definitions
) -> None:
    """What the engine takes whole passes; of what passes, the engine refuses only files that it doesn't have."""
    verdict = validate(copy.deepcopy(workflow), NODES, folders)
    reasons = {error["type"] for node in verdict.node_errors.values() for error in node["errors"]}
    if passes(workflow, definitions):
        assert reasons <= KNOWN_TO_THE_ENGINE_ONLY
        assert reasons or is_complete(workflow, verdict)
    else:
        assert not is_complete(workflow, verdict)


def passes(workflow: dict[str, Any], definitions: Definitions) -> bool:
    """Whether the check lets a workflow through."""
    try:
        check_graph(workflow, definitions)
    except InvalidWorkflowError:
        return False
    return True

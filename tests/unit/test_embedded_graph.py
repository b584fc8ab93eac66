"""The order of execution and the signatures of the embedded core."""

from __future__ import annotations

from typing import Any

from function.engine.embedded.graph import Order, signatures


def node(kind: str = "Node", **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def order(prompt: dict[str, Any], outputs: list[str], cached: frozenset[str] = frozenset()) -> list[str]:
    """The nodes as they are executed."""
    return list(
        Order(
            prompt, outputs, is_cached=cached.__contains__, is_output=lambda each: prompt[each]["class_type"] == "Save"
        )
    )


def digests(prompt: dict[str, Any], prints: dict[str, str] | None = None) -> dict[str, str]:
    """The signatures with these fingerprints."""
    return signatures(prompt, lambda node_id: (prints or {}).get(node_id, ""))


CHAIN = {"1": node(), "2": node(image=["1", 0]), "3": node("Save", images=["2", 0])}


def test_dependencies_come_first() -> None:
    """A node runs after the nodes it takes from."""
    assert order(CHAIN, ["3"]) == ["1", "2", "3"]


def test_only_what_outputs_need() -> None:
    """Nodes that no output depends on don't run."""
    assert order(CHAIN | {"9": node(image=["1", 0])}, ["3"]) == ["1", "2", "3"]


def test_cached_nodes_are_not_entered() -> None:
    """Nothing above a cached node is looked at; a cached output itself is handed out, to be told again."""
    assert order(CHAIN, ["3"], frozenset({"1", "2"})) == ["3"]
    assert order(CHAIN, ["3"], frozenset({"1", "2", "3"})) == ["3"]


def test_an_output_goes_first() -> None:
    """A ready output node is shown before other nodes are computed."""
    prompt = {
        "1": node(),
        "2": node("Save", images=["1", 0]),
        "3": node(image=["1", 0]),
        "4": node("Save", images=["3", 0]),
    }
    assert order(prompt, ["2", "4"]) == ["1", "2", "3", "4"]
    assert order(prompt, ["4", "2"]) == ["1", "2", "3", "4"]


def test_a_node_near_an_output_goes_first() -> None:
    """Of two ready nodes the one nearer to an output runs first."""
    prompt = {
        "1": node(),
        "2": node(x=["1", 0]),
        "3": node(),
        "4": node(a=["2", 0], b=["3", 0]),
        "5": node("Save", images=["4", 0]),
    }
    assert order(prompt, ["5"])[0] == "3"


def test_signature_covers_all_above() -> None:
    """A changed input changes the signatures of its node and of all nodes below, and of no other."""
    changed = CHAIN | {"2": node(image=["1", 0], extra="new")}
    before, after = digests(CHAIN), digests(changed)
    assert [before[each] == after[each] for each in ("1", "2", "3")] == [True, False, False]


def test_signature_covers_the_fingerprint() -> None:
    """A file's new content changes the signatures below its loader."""
    assert digests(CHAIN, {"1": "old"})["3"] != digests(CHAIN, {"1": "new"})["3"]


def test_signature_ignores_ids_and_order_of_inputs() -> None:
    """The same nodes under other ids, their inputs in another order, are the same work."""
    one = digests({"1": node(a=1, b=2), "2": node(x=["1", 0])})
    other = digests({"7": node(b=2, a=1), "8": node(x=["7", 0])})
    assert (one["1"], one["2"]) == (other["7"], other["8"])


def test_no_signature_for_what_cannot_run() -> None:
    """Cycles, links to nowhere and nodes without inputs have no signature."""
    prompt = {
        "1": node(x=["2", 0]),
        "2": node(x=["1", 0]),
        "3": node(x=["9", 0]),
        "4": {"class_type": "Node"},
        "5": node(x=["4", 0]),
        "6": node(),
    }
    assert list(digests(prompt)) == ["6"]


def test_deep_graphs() -> None:
    """A chain of thousands of nodes is no recursion."""
    prompt = {"0": node()} | {str(i): node(x=[str(i - 1), 0]) for i in range(1, 5000)}
    prompt["last"] = node("Save", images=["4999", 0])
    assert len(digests(prompt)) == 5001
    assert order(prompt, ["last"])[-1] == "last"

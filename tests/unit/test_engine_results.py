"""History entries and refusals, as results and errors."""

from __future__ import annotations

from typing import Any

import pytest

from function.engine.results import EngineFile, one_line, parse_executed, parse_run, to_refusal
from function.errors import InterruptedJobError, NodeFailedError, OutOfMemoryError


def entry(outputs: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that succeeded."""
    return {"outputs": outputs, "status": {"status_str": "success", "completed": True, "messages": []}}


def failed(*messages: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of a run that did not."""
    return {"outputs": {}, "status": {"status_str": "error", "messages": [list(message) for message in messages]}}


def node_error(kind: str, text: str = "") -> tuple[str, dict[str, Any]]:
    """What a node's exception leaves in the record."""
    data = {"node_id": "3", "node_type": "KSampler", "exception_type": kind, "exception_message": text}
    return "execution_error", data


@pytest.mark.parametrize("kind", ["images", "audio", "gifs", "3d", "latents", "files", "a_images", "unheard_of"])
def test_every_key_with_files_counts(kind: str) -> None:
    """Files are taken from any key, also one that a custom node invented."""
    item = {"filename": "a.bin", "subfolder": "x/y", "type": "temp"}
    files = parse_run("p", entry({"9": {kind: [item], "animated": [True]}}), node_seconds={}).files
    assert files == (EngineFile("9", kind, "a.bin", "x/y", "temp"),)


def test_texts_are_kept_per_node() -> None:
    """Strings under `text` are texts, beside the files of the same node."""
    outputs = {"1": {"text": ["a", "b"]}, "2": {"text": "c"}, "3": {"text": [], "files": [{"filename": "t.txt"}]}}
    run = parse_run("p", entry(outputs), node_seconds={"1": 0.5})
    assert run.texts == {"1": ["a", "b"], "2": ["c"]}
    assert run.files == (EngineFile("3", "files", "t.txt", "", "output"),)
    assert run.node_seconds == {"1": 0.5}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("executed", {"node": "1", "prompt_id": "other", "output": {"images": [{"filename": "a.png"}]}}),
        ("executing", {"node": "1", "prompt_id": "p", "output": {"images": [{"filename": "a.png"}]}}),
        ("executed", {"node": "1", "prompt_id": "p", "output": None}),
        ("executed", {"node": "1", "prompt_id": "p"}),
        ("executed", None),
    ],
)
def test_other_messages_announce_nothing(kind: str, data: Any) -> None:
    """Another run's files and a node that shows nothing are no outputs of this run."""
    assert parse_executed({"type": kind, "data": data}, prompt_id="p") == ()


def test_what_is_no_file_is_ignored() -> None:
    """Values that name no file are no outputs."""
    outputs = {"1": {"images": [{"filename": 5}, None, "x"], "result": {"a": 1}, "value": [1.5]}}
    assert parse_run("p", entry(outputs), node_seconds={}).files == ()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("torch.OutOfMemoryError", "Allocation on device"),
        ("torch.cuda.OutOfMemoryError", ""),
        ("MemoryError", ""),
        ("RuntimeError", "CUDA error: out of memory"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes"),
    ],
)
def test_out_of_memory(kind: str, text: str) -> None:
    """Memory that did not suffice is recognised by the exception's type or by its words."""
    with pytest.raises(OutOfMemoryError):
        parse_run("p", failed(node_error(kind, text)), node_seconds={})


def test_interrupt_is_no_node_failure() -> None:
    """An interrupted run is reported as such, also after a branch that was blocked."""
    interrupted = ("execution_interrupted", {"node_id": "4", "node_type": "VAEDecode"})
    with pytest.raises(InterruptedJobError, match=r"node 4 \(VAEDecode\)"):
        parse_run("p", failed(node_error("ExecutionBlocked"), interrupted), node_seconds={})


def test_failure_without_reason() -> None:
    """A record that names no reason still is a failure."""
    with pytest.raises(NodeFailedError, match="without a reason"):
        parse_run("p", {}, node_seconds={})


def test_refusal_names_every_error() -> None:
    """Each error of each node has its part of the message."""
    errors = [{"type": "a", "message": "b", "details": "c"}, {"type": "d", "extra_info": {"input_name": "e"}}]
    refusal = to_refusal({"node_errors": {"1": {"class_type": "X", "errors": errors}}})
    assert refusal.message == "the engine refuses the workflow: node 1 (X): a: b: c; node 1 (X), input e: d"


@pytest.mark.parametrize("answer", ["", None, [], {}, {"error": "text"}, {"node_errors": {}}])
def test_refusal_of_any_shape(answer: object) -> None:
    """An answer of unknown shape is a refusal all the same."""
    assert to_refusal(answer).message.startswith("the engine refuses the workflow: ")


def test_long_lines_are_cut() -> None:
    """A message is one line of bounded length."""
    assert one_line("\n  first\nsecond") == "first"
    assert len(one_line("x" * 1000)) == 300

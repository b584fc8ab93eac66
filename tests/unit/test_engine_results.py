"""History entries and refusals, as results and errors."""

from __future__ import annotations

from typing import Any

import pytest

from function.engine.results import EngineFile, one_line, parse_executed, parse_run, to_refusal
from function.errors import EngineUnavailableError, InterruptedJobError, NodeFailedError, OutOfMemoryError


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


def test_outputs_of_an_added_node_belong_to_the_node_that_added_it() -> None:
    """The history's `meta` says which: nobody who sent the workflow knows the other."""
    meta = {"9.0.1": {"node_id": "9.0.1", "display_node": "9", "parent_node": "9", "real_node_id": "9"}}
    outputs = {"9.0.1": {"images": [{"filename": "a.png"}], "text": ["a"]}, "9": {"text": ["b"]}}
    run = parse_run("p", entry(outputs) | {"meta": meta}, node_seconds={})
    assert [file.node_id for file in run.files] == ["9"]
    assert run.texts == {"9": ["a", "b"]}
    data = {"node": "9.0.1", "display_node": "9", "prompt_id": "p", "output": outputs["9.0.1"]}
    assert [file.node_id for file in parse_executed({"type": "executed", "data": data}, prompt_id="p")] == ["9"]


@pytest.mark.parametrize(
    "broken",
    [
        {"status": ["success"]},
        {"status": {"status_str": "success"}, "outputs": ["a"]},
        {"status": {"status_str": "success"}, "outputs": {"1": ["a"]}},
        {"status": {"status_str": "success"}, "outputs": {"1": {}}, "meta": ["a"]},
        {"status": {"status_str": "error", "messages": ["interrupted"]}},
    ],
)
def test_a_record_that_is_none_is_the_engines_fault(broken: dict[str, Any]) -> None:
    """The job may succeed in another engine."""
    with pytest.raises(EngineUnavailableError, match="not what ComfyUI writes"):
        parse_run("p", broken, node_seconds={})


def test_a_run_that_gave_up_is_no_success_whatever_its_status_is_called() -> None:
    """ComfyUI writes `success` for one that it ended because of a dependency cycle, with what other nodes had made."""
    record = entry({"1": {"images": [{"filename": "a.png"}]}})
    record["status"]["messages"] = [["execution_start", {}], ["execution_cached", {}], list(node_error("Cycle"))]
    with pytest.raises(NodeFailedError, match="KSampler"):
        parse_run("p", record, node_seconds={})
    record["status"]["messages"][-1] = ["execution_interrupted", {"node_id": "3", "node_type": "KSampler"}]
    with pytest.raises(InterruptedJobError):
        parse_run("p", record, node_seconds={})


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


@pytest.mark.parametrize(
    "answer",
    ["", None, [], {}, {"error": "text"}, {"node_errors": {}}, {"node_errors": ["a"]}, {"node_errors": {"1": 5}}],
)
def test_refusal_of_any_shape(answer: object) -> None:
    """An answer of unknown shape is a refusal all the same."""
    assert to_refusal(answer).message.startswith("the engine refuses the workflow: ")


def test_long_lines_are_cut() -> None:
    """A message is one line of bounded length."""
    assert one_line("\n  first\nsecond") == "first"
    assert len(one_line("x" * 1000)) == 300

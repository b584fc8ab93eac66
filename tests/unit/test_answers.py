"""What clients of comfyui-api are told of a job."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from function.answers import failure_members, safe_name, stats, to_document, with_prefixes
from function.errors import InputRefusedError
from function.handover import Conversion, UploadTarget
from function.job import Job, JobResult, Output

JOB = Job("0" * 32, {"1": {"class_type": "X", "inputs": {}}}, label="mine", request={"id": "mine", "x": 1})


def result_with(*names: str) -> JobResult:
    """A completed job with these files."""
    outputs = tuple(
        Output("1", "images", name.rpartition("/")[2], name.rpartition("/")[0], "", 1, "", data=b"x") for name in names
    )
    timings = {"models": 0.1, "inputs": 0.02, "executing": 1.5, "storing": 0.004, "uploading": 0.25, "total": 2.0}
    execution = {"start": 1_700_000_000_000, "end": 1_700_000_001_400, "nodes": {"3": 1_700_000_000_100}}
    return JobResult("0" * 32, "completed", 1, "mine", "", outputs, timings=timings, execution=execution)


def document(job: Job, result: JobResult, **changes: Any) -> dict[str, Any]:
    """The answer, read."""
    found = to_document(job, result, [b"x"] * len(result.outputs), **changes)
    answer: dict[str, Any] = json.loads(found if isinstance(found, bytes) else b"".join(found))
    return answer


def test_an_answer_repeats_the_request_and_lists_files_with_their_folders() -> None:
    """`images` and `filenames` run side by side."""
    answer = document(JOB, result_with("a.png", "video/a.png"), warnings=["careful"])
    assert (answer["id"], answer["x"], answer["prompt"]) == ("mine", 1, JOB.workflow)
    assert (answer["images"], answer["filenames"]) == (["eA=="] * 2, ["a.png", "video/a.png"])
    assert answer["warnings"] == ["careful"]


@pytest.mark.parametrize(
    ("prefix", "urls"),
    [
        ("s3://b/out ", ["s3://b/out ü 1.png", "s3://b/out v/b.webm"]),
        ("https://h/in/", ["https://h/in/%C3%BC%201.png", "https://h/in/v/b.webm"]),
    ],
)
def test_uploaded_files_are_urls(prefix: str, urls: list[str]) -> None:
    """Literal for a bucket, percent-encoded for a server."""
    answer = document(replace(JOB, upload=UploadTarget(prefix)), result_with("ü 1.png", "v/b.webm"))
    assert answer["images"] == urls


def test_files_that_are_no_images_are_named_when_images_are_converted() -> None:
    """They were passed through, and nobody has to find out by looking."""
    job = replace(JOB, convert_output=Conversion("webp"))
    warnings = document(job, result_with("a.webp", "v/b.mp4"))["warnings"]
    assert warnings == ["v/b.mp4: no image that is converted; it is as the workflow wrote it"]
    assert "warnings" not in document(job, result_with("a.webp"))


def test_stats_are_milliseconds() -> None:
    """As comfyui-api has them on the wire; what the engine did not note is left out."""
    assert stats(result_with()) == {
        "comfy_execution": {
            "start": 1_700_000_000_000,
            "end": 1_700_000_001_400,
            "duration": 1400,
            "nodes": {"3": {"start": 1_700_000_000_100}},
        },
        "preprocess_time": 120,
        "comfy_round_trip_time": 1500,
        "postprocess_time": 4,
        "upload_time": 250,
        "total_time": 2000,
    }
    assert stats(replace(result_with(), execution={}))["comfy_execution"] == {"duration": 1500, "nodes": {}}


def test_a_failure_is_one_line_with_its_details() -> None:
    """ComfyUI's own words about nodes among them."""
    error = {"code": "invalid_workflow", "message": "no", "node_errors": {"1": {}}}
    members = failure_members(JOB, replace(result_with(), status="failed", error=error))
    assert members == {
        "id": "mine",
        "prompt": JOB.workflow,
        "error": "no",
        "code": "invalid_workflow",
        "node_errors": {"1": {}},
    }


@pytest.mark.parametrize("text", ["a", "A.b-c_1", "123e4567-e89b-12d3-a456-426614174000", "x" * 100])
def test_an_id_that_can_be_a_name_is_one(text: str) -> None:
    """UUIDs among them."""
    assert safe_name(text) == text


@pytest.mark.parametrize("text", ["a/b", "..", ".hidden", "ä", "%date%", "a b", "x" * 101, "\ud800", "\r\n"])
def test_an_id_that_can_be_none_gets_a_digest(text: str) -> None:
    """Two ids never get one name."""
    name = safe_name(text)
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) <= 109
    assert name != safe_name(f"{text}!")


def test_prefixes_are_named_by_the_id_and_links_stay() -> None:
    """Every node with a prefix of its own; one that points outside is refused as it would be without an id."""
    workflow = {
        "1": {"class_type": "SaveVideo", "inputs": {"filename_prefix": "video/a"}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["3", 0]}},
        "3": {"class_type": "X", "inputs": {}},
    }
    kept = with_prefixes(workflow, "mine", keep_prefix=True)
    assert [node["inputs"].get("filename_prefix") for node in kept.values()] == ["mine_video/a", ["3", 0], None]
    assert with_prefixes(workflow, "a/b", keep_prefix=False)["1"]["inputs"]["filename_prefix"] == safe_name("a/b")
    for prefix in ("../a", "/a", "a\\b"):
        outside = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix}}}
        with pytest.raises(InputRefusedError, match="node 1, input filename_prefix"):
            with_prefixes(outside, "mine", keep_prefix=True)

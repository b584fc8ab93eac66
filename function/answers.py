"""What clients of comfyui-api are told of a job: in the answer to their request and in their webhooks. Pure.

Both say the same: every field of the request as it came, the workflow after it was made ready, the files, and how long
it took.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from function.streamed import DocumentWithFiles, to_json
from function.workflow import OUTPUT_INPUT, check_relative, replace_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from function.job import Job, JobResult, Output
    from function.streamed import FileInPieces
    from function.workflow import Workflow

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_ID = 100
_DIGEST_CHARACTERS = 8


def answer_id(job: Job) -> str:
    """The id by which the client knows its job: its own, or else ours."""
    return job.label or job.job_id


def safe_id(job: Job) -> str:
    """The same as a part of file names and headers."""
    return safe_name(answer_id(job))


def safe_name(text: str) -> str:
    """A caller's id as part of a file name: itself if it can be one, else what can be kept of it and a digest."""
    kept = _UNSAFE.sub("_", text)[:_LONGEST_ID].lstrip(".")
    if kept == text:
        return text
    return f"{kept}-{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_DIGEST_CHARACTERS]}"


def with_prefixes(workflow: Workflow, identity: str, *, keep_prefix: bool) -> Workflow:
    """The workflow whose files are named by its client's id: `<id>_<filename_prefix>`, or `<id>` alone.

    Raises:
        InputRefusedError: A prefix points outside, which an id before it would hide.
    """
    name = safe_name(identity)
    named: dict[tuple[str, str], str] = {}
    for node_id, node in workflow.items():
        prefix = node["inputs"].get(OUTPUT_INPUT)
        if isinstance(prefix, str):
            check_relative(prefix, what=f"node {node_id}, input {OUTPUT_INPUT}")
            named[node_id, OUTPUT_INPUT] = f"{name}_{prefix}" if keep_prefix else name
    return replace_inputs(workflow, named)


def to_document(
    job: Job,
    result: JobResult,
    files: Sequence[bytes | FileInPieces],
    *,
    first: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> bytes | DocumentWithFiles:
    """The answer to a job that was completed: `images` and `filenames` run side by side, URLs if it has an upload.

    Args:
        job: The job.
        result: Its result.
        files: The outputs' bytes; not looked at if they were uploaded.
        first: More members, before the others.
        warnings: What is to be said beside what the result says.
    """
    before = {**(first or {}), **request_members(job)}
    after = _result_members(job, result, warnings)
    if job.upload:
        urls = [job.upload.url_of(output.path) for output in result.outputs]
        return to_json({**before, "images": urls, **after})
    return DocumentWithFiles(before, "images", files, after)


def to_file_document(job: Job, result: JobResult, output: Output, file: FileInPieces) -> DocumentWithFiles:
    """What a legacy webhook says of one output file."""
    before = {"event": "output.complete", "id": answer_id(job)}
    after = {"filename": output.path, "prompt": shown_workflow(job.workflow), "stats": stats(result)}
    return DocumentWithFiles(before, "image", [file], after, listed=False)


def failure_members(job: Job, result: JobResult) -> dict[str, Any]:
    """What webhooks say of a job that failed; `error` is one line, beside it what the error's details are."""
    error = dict(result.error or {})
    message = error.pop("message", "")
    return {"id": answer_id(job), "prompt": shown_workflow(job.workflow), "error": message, **error}


def request_members(job: Job) -> dict[str, Any]:
    """The request as answers repeat it."""
    return {**job.request, "id": answer_id(job), "prompt": shown_workflow(job.workflow)}


def stats(result: JobResult) -> dict[str, Any]:
    """How long it took, in milliseconds; starts and ends in milliseconds since 1970."""
    milliseconds = {stage: round(seconds * 1000) for stage, seconds in result.timings.items()}
    executing = milliseconds.get("executing", 0)
    return {
        "comfy_execution": _execution(result.execution, executing),
        "preprocess_time": milliseconds.get("models", 0) + milliseconds.get("inputs", 0),
        "comfy_round_trip_time": executing,
        "postprocess_time": milliseconds.get("storing", 0),
        "upload_time": milliseconds.get("uploading", 0),
        "total_time": milliseconds.get("total", 0),
    }


def _execution(times: Mapping[str, Any], executing: int) -> dict[str, Any]:
    known = {name: times[name] for name in ("start", "end") if name in times}
    duration = known["end"] - known["start"] if "start" in known and "end" in known else executing
    nodes = {node_id: {"start": start} for node_id, start in times.get("nodes", {}).items()}
    return {**known, "duration": duration, "nodes": nodes}


def _result_members(job: Job, result: JobResult, warnings: Sequence[str]) -> dict[str, Any]:
    members: dict[str, Any] = {"filenames": [output.path for output in result.outputs], "stats": stats(result)}
    if result.texts:
        members["texts"] = result.texts
    if said := [*warnings, *_unconverted(job, result)]:
        members["warnings"] = said
    return members


def _unconverted(job: Job, result: JobResult) -> list[str]:
    conversion = job.convert_output
    if conversion is None:
        return []
    kept = [output.path for output in result.outputs if not conversion.applies_to(output.filename)]
    return [f"{name}: no image that is converted; it is as the workflow wrote it" for name in kept]


def shown_workflow(value: Any) -> Any:  # noqa: ANN401  (any JSON)
    """A workflow as answers repeat it: a file inside it is not sent back."""
    if isinstance(value, dict):
        return {name: shown_workflow(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shown_workflow(item) for item in value]
    if isinstance(value, str) and value.startswith("data:"):
        return f"{value.partition(',')[0]},..."
    return value

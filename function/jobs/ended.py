"""The event that tells of a job's end, the same bytes wherever and however often it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events import JOB_COMPLETED, JOB_FAILED, to_structured
from function.jobs.manifest import to_manifest

if TYPE_CHECKING:
    from function.job import JobResult

SOURCE = "/comfyfn"
"""Of every event that the function sends."""


def to_ended_event(result: JobResult) -> tuple[dict[str, str], bytes]:
    """Headers and body of the structured `completed` or `failed` event of a result."""
    return to_structured(
        JOB_COMPLETED if result.status == "completed" else JOB_FAILED,
        id=f"{result.job_id}.{result.status}",
        source=SOURCE,
        subject=result.job_id,
        time=result.finished_at,
        data=to_manifest(result),
    )

"""What brings input files in tests: two stores, servers on this machine, and a directory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from function.inputs.remote import RemoteFiles
from function.inputs.sources import InputSources
from function.inputs.staging import staged_inputs
from function.job import Job, random_job_id
from function.sources import ANY_HTTP
from function.storage import open_store
from function.storage.https import FetchRules
from function.telemetry import ignore_progress
from tests.support.https import make_tls, on_this_machine

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from function.storage.objects import ObjectStore
    from function.workflow import Workflow

RULES = FetchRules(
    allow=ANY_HTTP,
    setting="INPUT_URL_ALLOW",
    allow_private=True,
    plain_http=True,
    resolve=on_this_machine,
    make_tls=make_tls,
)
"""Every URL leads to this machine."""


def input_sources(root: Path, uploads: ObjectStore | None = None, **changes: Any) -> InputSources:
    """All sources of a function whose directories are below `root`; `changes` are of the rules or of the sources."""
    rules = {name: changes.pop(name) for name in tuple(changes) if hasattr(RULES, name)}
    input_dir = root / "input"
    input_dir.mkdir(exist_ok=True)
    sources = InputSources(
        uploads or open_store(f"file://{root}/uploads"),
        open_store(f"file://{root}/results"),
        RemoteFiles(replace(RULES, **rules)),
        input_dir,
    )
    return replace(sources, **changes)


def job_of(workflow: Workflow, **members: Any) -> Job:
    """A job."""
    return Job(random_job_id(), workflow, **members)


def load_image(value: Any, class_type: str = "LoadImage", name: str = "image") -> Workflow:
    """A graph with one loader, called 1."""
    return {"1": {"class_type": class_type, "inputs": {name: value}}}


def staging(job: Job, sources: InputSources, **changes: Any) -> AbstractContextManager[Workflow]:
    """Stage the inputs of a job, in half a minute."""
    arguments = {"deadline": time.monotonic() + 30, "on_progress": ignore_progress} | changes
    return staged_inputs(job.workflow, job, sources, **arguments)

"""Input files of a job that is run from its record: what the record can't name again is stored as the job's own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from function.errors import InvalidWorkflowError
from function.inputs.media import media_inputs, with_values
from function.inputs.sources import own_prefix, url_of_prefix
from function.inputs.staging import bring_all
from function.storage.objects import media_type_of
from function.telemetry import ignore_progress
from function.workflow import parse_workflow, replace_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.inputs.media import Media
    from function.inputs.sources import InputSources
    from function.inputs.staging import Brought
    from function.job import Job
    from function.storage.objects import ObjectStore

_PREFIX = "comfyfn-inputs-"


class OwnInputs:
    """Makes input files objects of the job.

    Args:
        sources: Where files come from and go to.
        deadline_seconds: How long bringing those of a job may take.
    """

    def __init__(self, sources: InputSources, *, deadline_seconds: float) -> None:
        self.sources = sources
        self._deadline_seconds = deadline_seconds

    def store(self, job: Job, *, remote: bool) -> Any:  # noqa: ANN401  (perhaps no graph)
        """The workflow with its own files as objects of the job; a graph that is none stays, for others to refuse.

        Args:
            job: The job.
            remote: Whether files of other people's servers are fetched too, and not only those inside the workflow.

        Raises:
            JobFailedError: A file can't be had; nothing was stored.
            StorageUnavailableError: Files can't be stored.
        """
        wanted = list(self._own(job, remote=remote))
        if not wanted:
            return job.workflow
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            deadline = time.monotonic() + min(job.deadline_seconds or self._deadline_seconds, self._deadline_seconds)
            brought = bring_all(wanted, Path(folder), job, self.sources, deadline=deadline, on_progress=ignore_progress)
            stored = {item.media: self._store(item, Path(folder), job) for item in brought}
        return with_values(job.workflow, stored)

    def without(self, job: Job) -> Any:  # noqa: ANN401  (perhaps no graph)
        """The workflow without the values that `store` replaces."""
        return with_values(job.workflow, dict.fromkeys(self._own(job, remote=True), ""))

    def copy(self, workflow: Any, job_id: str, new_id: str) -> Any:  # noqa: ANN401  (perhaps no graph)
        """The workflow of a recorded job for a new job, with copies of the files that are its own.

        Raises:
            StorageUnavailableError: They can't be copied.
        """
        results = self.sources.results
        old, new = own_prefix(job_id), own_prefix(new_id)
        for info in results.list_objects(old):
            with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
                path = Path(folder, "file")
                results.download(info.key, path, etag=results.head(info.key).etag)
                _upload(path, new + info.key.removeprefix(old), results)
        return replace_prefix(workflow, url_of_prefix(results, old), url_of_prefix(results, new))

    def _own(self, job: Job, *, remote: bool) -> Iterator[Media]:
        try:
            graph = parse_workflow(job.workflow)
        except InvalidWorkflowError:
            return
        for media in media_inputs(graph):
            if self.sources.is_inline(media) or (remote and self.sources.is_remote(media, job.job_id)):
                yield media

    def _store(self, item: Brought, folder: Path, job: Job) -> str:
        key = own_prefix(job.job_id) + item.path.relative_to(folder).as_posix()
        _upload(item.path, key, self.sources.results)
        return self.sources.results.object_url(key)


def _upload(path: Path, key: str, results: ObjectStore) -> None:
    with path.open("rb") as file:
        results.upload(key, file, size_bytes=path.stat().st_size, media_type=media_type_of(key))

"""All input files of a job at once: side by side, watched from the job's own thread."""

from __future__ import annotations

import shutil
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from function.errors import JobFailedError, StorageUnavailableError
from function.inputs.errand import Errand
from function.inputs.media import media_inputs, with_values
from function.job import JOB_ID
from function.telemetry import Progress
from function.workflow import replace_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from function.inputs.media import Media
    from function.inputs.sources import InputSources
    from function.job import Job
    from function.telemetry import OnProgress
    from function.validation.definitions import Definitions
    from function.workflow import Workflow

_PARALLEL = 4
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Brought:
    """One file that is there.

    Attributes:
        media: What the workflow has in its place.
        path: Where it is.
    """

    media: Media
    path: Path


@contextmanager
def staged_inputs(
    workflow: Workflow,
    job: Job,
    sources: InputSources,
    *,
    deadline: float,
    on_progress: OnProgress,
    definitions: Definitions | None = None,
) -> Iterator[Workflow]:
    """Put every input file of a workflow into INPUT_DIR/<job_id> and yield the graph that names them there.

    The directory is removed at the end.

    Args:
        workflow: The graph of the job, perhaps with other models' names in it.
        job: Whose files they are.
        sources: Where they come from.
        deadline: Monotonic seconds.
        on_progress: Told in this thread; what it raises ends the errand.
        definitions: The engine's node classes, as far as they are known.

    Raises:
        JobFailedError: Naming node and input, with its `location`; see `InputSources.bring`.
        StorageUnavailableError: One of our stores does not answer.
    """
    directory = sources.input_dir / job.job_id
    try:
        wanted = list(media_inputs(workflow, definitions))
        brought = bring_all(wanted, directory, job, sources, deadline=deadline, on_progress=on_progress)
        yield _localised(workflow, brought, sources.input_dir)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def bring_all(
    wanted: Sequence[Media],
    directory: Path,
    job: Job,
    sources: InputSources,
    *,
    deadline: float,
    on_progress: OnProgress,
) -> list[Brought]:
    """Bring files into folders of their own below a directory; what turns out to be no file is left out.

    Raises:
        As `staged_inputs`.
    """
    if not wanted:
        return []
    places = [(media, directory / folder) for media, folder in _folders(wanted)]
    _make({folder for _, folder in places}, sources)
    errand = Errand(max_bytes=sources.max_bytes, deadline=deadline)
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="inputs")
    try:
        futures = {pool.submit(_bring, media, folder, job, sources, errand): media for media, folder in places}
        _watch(futures, errand, on_progress)
        paths = {_content(media): path for future, media in futures.items() if (path := future.result())}
        return [Brought(media, paths[_content(media)]) for media in wanted if _content(media) in paths]
    finally:
        errand.stop()
        pool.shutdown(wait=False, cancel_futures=True)  # who waits for a store writes nothing any more


def remove_strays(input_dir: Path) -> None:
    """Remove the directories of jobs that a process left which was killed; for the start, when no job runs."""
    for path in input_dir.iterdir() if input_dir.is_dir() else ():
        if JOB_ID.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _make(folders: Iterable[Path], sources: InputSources) -> None:
    """Make the folders here and not in the threads: one that is late must not make anew what was removed."""
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageUnavailableError(f"input directory {sources.input_dir}: {error.strerror or error}") from error


def _bring(media: Media, folder: Path, job: Job, sources: InputSources, errand: Errand) -> Path | None:
    try:
        errand.check()
        return sources.bring(media, folder, job, errand)
    except JobFailedError as error:
        raise media.placed(error) from error


def _watch(futures: dict[Future[Path | None], Media], errand: Errand, on_progress: OnProgress) -> None:
    """Wait for all, and raise the first error that is met."""
    running = set(futures)
    while running:
        errand.check()
        media = next(media for future, media in futures.items() if future in running)
        done_fraction = 1 - len(running) / len(futures)
        on_progress(Progress("inputs", done_fraction, f"node {media.node_id}, input {media.name}"))
        done, running = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            future.result()


def _content(media: Media) -> tuple[str, object]:
    """What tells one file from another: the same value is brought once, but for those of lists."""
    return media.value, media.item is not None and (media.place, media.item)


def _folders(wanted: Sequence[Media]) -> Iterator[tuple[Media, str]]:
    """Each file once, with the name of its folder: no two files share one but those of a list."""
    numbers: dict[object, int] = {}
    seen = set()
    for media in wanted:
        content = _content(media)
        number = numbers.setdefault(content if media.item is None else media.place, len(numbers))
        if content not in seen:
            seen.add(content)
            yield media, str(number)


def _localised(workflow: Workflow, brought: Sequence[Brought], input_dir: Path) -> Workflow:
    def local(path: Path, media: Media) -> str:
        return str(path) if media.by_path else str(path.relative_to(input_dir))

    single = {item.media: local(item.path, item.media) for item in brought if item.media.item is None}
    folders = {item.media.place: local(item.path.parent, item.media) for item in brought if item.media.item is not None}
    return replace_inputs(with_values(workflow, single), folders)

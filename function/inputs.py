"""Input files of a job: brought from storage, or taken from the workflow itself, into a directory of the job's own.

A media input of a workflow names an object under UPLOADS_URL, by its key (`cats/a.png`) or by its URL, or carries the
file as a data URI. In the record of a job the latter are URLs of objects that are this job's own, `inputs/<job_id>/<n>`
under RESULTS_URL. Nothing else is read: no path, no other bucket, no other scheme.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from function.errors import InputMissingError, InputRefusedError, InvalidWorkflowError
from function.storage.objects import ObjectMissingError, media_type_of
from function.telemetry import Progress
from function.workflow import Workflow, check_relative, literal_inputs, parse_workflow, replace_inputs, replace_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.storage.objects import ObjectStore
    from function.telemetry import OnProgress

# ComfyUI's core loaders of files from the input directory (docs of each node; nodes.py and comfy_extras of 0.3.64).
MEDIA_INPUTS = frozenset(
    {
        ("LoadImage", "image"),
        ("LoadImageMask", "image"),
        ("LoadAudio", "audio"),
        ("LoadVideo", "file"),
        ("LoadLatent", "latent"),
    }
)
_DATA_URI = re.compile(r"data:(?P<media_type>[\w.+-]+/[\w.+-]+)(?:;[\w=.-]+)*;base64,")


def store_inline_inputs(workflow: object, job_id: str, results: ObjectStore) -> Any:  # noqa: ANN401  (perhaps no graph)
    """The workflow with its data URIs as objects of the job; a graph that is none stays as it is, for others to refuse.

    Raises:
        InputRefusedError: A data URI is broken.
    """
    try:
        graph = parse_workflow(workflow)
    except InvalidWorkflowError:
        return workflow
    stored: dict[tuple[str, str], str] = {}
    for number, (node_id, name, value) in enumerate(_media_inputs(graph)):
        if value.startswith("data:"):
            data, extension = _parse_data_uri(value, what=f"node {node_id}, input {name}")
            key = f"{_own_prefix(job_id)}{number}{extension}"
            results.put(key, data, media_type=media_type_of(key))
            stored[node_id, name] = results.object_url(key)
    return replace_inputs(graph, stored) if stored else workflow


def copy_own_inputs(workflow: Any, job_id: str, new_id: str, results: ObjectStore) -> Any:  # noqa: ANN401  (perhaps no graph)
    """The workflow of a recorded job for a new job, with copies of the files that came inside it.

    Raises:
        StorageUnavailableError: They can't be copied.
    """
    for info in results.list_objects(_own_prefix(job_id)):
        data = results.get(info.key, max_bytes=info.size_bytes)
        key = _own_prefix(new_id) + info.key.removeprefix(_own_prefix(job_id))
        results.put(key, data, media_type=media_type_of(key))
    return replace_prefix(workflow, _own_url(results, job_id), _own_url(results, new_id))


@contextmanager
def staged_inputs(
    workflow: Workflow,
    *,
    job_id: str,
    input_dir: Path,
    uploads: ObjectStore,
    results: ObjectStore,
    on_progress: OnProgress,
) -> Iterator[Workflow]:
    """Put every input file of a workflow into INPUT_DIR/<job_id> and yield the graph that names them there.

    The directory is removed at the end.

    Raises:
        InputMissingError: Naming node, input and URL.
        InputRefusedError: A name or URL points outside UPLOADS_URL, or a data URI is broken.
    """
    wanted = list(_media_inputs(workflow))
    own_url = _own_url(results, job_id)
    directory = input_dir / job_id
    staged: dict[tuple[str, str], str] = {}
    try:
        for number, (node_id, name, value) in enumerate(wanted):
            on_progress(Progress("inputs", number / len(wanted), value[:80]))
            what = f"node {node_id}, input {name}"
            if value.startswith("data:"):
                filename = _write_data_uri(value, directory, number, what=what)
            elif value.startswith(own_url):
                key = value.removeprefix(own_url)
                check_relative(key, what=what)
                filename = _download(_own_prefix(job_id) + key, directory, results, filename=key, what=what)
            else:
                key = _upload_key(value, uploads, what=what)
                filename = _download(key, directory, uploads, filename=key, what=what)
            staged[node_id, name] = f"{job_id}/{filename}"
        yield replace_inputs(workflow, staged)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _media_inputs(workflow: Workflow) -> Iterator[tuple[str, str, str]]:
    """Every input that stands for a file: node id, input name, value."""
    for node_id, class_type, name, value in literal_inputs(workflow):
        if (class_type, name) in MEDIA_INPUTS or value.startswith("data:"):
            yield node_id, name, value


def _own_prefix(job_id: str) -> str:
    return f"inputs/{job_id}/"


def _own_url(results: ObjectStore, job_id: str) -> str:
    """What the URLs of a job's own files begin with; a store gives URLs of keys only, and no key ends in `/`."""
    return results.object_url(f"{_own_prefix(job_id)}x").removesuffix("x")


def _download(key: str, directory: Path, store: ObjectStore, *, filename: str, what: str) -> str:
    path = directory / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.download(key, path, etag=store.head(key).etag)
    except ObjectMissingError as error:
        raise InputMissingError(f"{what}: no object {store.object_url(key)}; upload it first") from error
    return filename


def _upload_key(value: str, uploads: ObjectStore, *, what: str) -> str:
    key = value.removeprefix(f"{uploads.url}/").removesuffix(" [input]")
    if "://" in key:
        raise InputRefusedError(f"{what}: only objects under {uploads.url} and data URIs are read")
    check_relative(key, what=what)
    return key


def _write_data_uri(value: str, directory: Path, number: int, *, what: str) -> str:
    data, extension = _parse_data_uri(value, what=what)
    filename = f"inline-{number}{extension}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / filename).write_bytes(data)
    return filename


def _parse_data_uri(value: str, *, what: str) -> tuple[bytes, str]:
    """The bytes of a data URI, and the extension of its media type."""
    head = _DATA_URI.match(value)
    if head is None:
        raise InputRefusedError(f"{what}: a data URI must look like data:image/png;base64,...")
    try:
        data = base64.b64decode(value[head.end() :], validate=True)
    except binascii.Error as error:
        raise InputRefusedError(f"{what}: the data URI is not valid base64") from error
    return data, mimetypes.guess_extension(head["media_type"]) or ""

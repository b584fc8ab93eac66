"""Where one input file comes from, and how it gets there."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from function.errors import InputMissingError, InputRefusedError, StorageUnavailableError
from function.inputs.errand import Arrival
from function.inputs.inline import decode, inline_extension, is_base64_file
from function.inputs.magic import HEAD_BYTES, extension_of
from function.inputs.media import data_uri_head
from function.inputs.pixels import check_pixels
from function.inputs.remote import copy_object, remote_name
from function.job import JOB_ID
from function.sources import is_url
from function.storage.objects import MAX_KEY_BYTES, ObjectChangedError, ObjectMissingError, is_media_name
from function.workflow import check_relative

if TYPE_CHECKING:
    from pathlib import Path

    from function.inputs.errand import Errand
    from function.inputs.media import Media
    from function.inputs.remote import RemoteFiles
    from function.job import Job
    from function.storage.objects import ObjectStore

_UNSAFE = re.compile(r"[^\w.+() -]")
_MAX_NAME_BYTES = 200  # with what is put before and behind it, it is no longer than a file system takes
_FETCHED = ("https://", "http://", "s3://", "file://")  # the last one to be refused; other schemes are the node's own


@dataclass(frozen=True, slots=True)
class InputSources:
    """All there are.

    Attributes:
        uploads: UPLOADS_URL, whose keys are the names of input files.
        results: RESULTS_URL, with the files of a job's own, and outputs.
        remote: Other people's servers.
        input_dir: The engine's input directory: files that lie there may be named too. A job's directory is in it.
        max_bytes: Largest file; 0: unlimited.
        max_pixels: Most pixels of an image; 0: as many as the engine takes.
    """

    uploads: ObjectStore
    results: ObjectStore
    remote: RemoteFiles
    input_dir: Path
    max_bytes: int = 0
    max_pixels: int = 0

    def is_inline(self, media: Media) -> bool:
        """Whether the file comes inside the workflow."""
        if media.value.startswith("data:"):
            return media.known or data_uri_head(media.value) is not None
        return media.kind != "file" and is_base64_file(media.value)

    def is_remote(self, media: Media, job_id: str) -> bool:
        """Whether the file is on somebody else's server."""
        return is_url(media.value) and self._store_of(media.value, job_id) is None

    def bring(self, media: Media, folder: Path, job: Job, errand: Errand) -> Path | None:
        """Put a file into a folder, unless it lies in the input directory.

        Args:
            media: The file.
            folder: Where it goes, under a name of its own. It exists, or the file is not wanted any more.
            job: Whose files and credentials these are.
            errand: What it counts to.

        Returns:
            Where it is; None: the value is no file, as far as we can tell.

        Raises:
            InputMissingError, InputRefusedError, InputUnavailableError, DeadlineExceededError: It can't be had.
            StorageUnavailableError: One of our stores does not answer, or the disk is full.
        """
        try:
            path = self._bring(media, folder, job, Arrival(errand))
        except OSError as error:
            raise StorageUnavailableError(f"input directory {self.input_dir}: {error.strerror or error}") from error
        if path and media.kind in {"image", "images", "file"}:
            check_pixels(path, max_pixels=self.max_pixels)
        return path

    def _bring(self, media: Media, folder: Path, job: Job, arrival: Arrival) -> Path | None:
        if self.is_inline(media):
            path = _target(media, folder, f"inline{inline_extension(media.value)}")
            _write_inline(media.value, path, arrival)
            return path
        if not is_url(media.value):
            return self._bring_named(media, folder, job, arrival)
        if place := self._store_of(media.value, job.job_id):
            return _download(*place, media, folder, arrival)
        if not media.known and not media.value.lower().startswith(_FETCHED):
            return None
        path = _target(media, folder, remote_name(media.value) or "file")
        self.remote.fetch(media.value, path, credentials=job.credentials, arrival=arrival)
        return _with_extension(path)

    def _store_of(self, value: str, job_id: str) -> tuple[ObjectStore, str] | None:
        """The store of ours that a URL is of, and the key there: uploads, outputs, and this job's own files."""
        places = (self.uploads, ""), (self.results, "outputs/"), (self.results, own_prefix(job_id))
        for store, prefix in places:
            beginning = url_of_prefix(store, prefix)
            if value.startswith(beginning):
                return store, prefix + value.removeprefix(beginning)
        return None

    def _bring_named(self, media: Media, folder: Path, job: Job, arrival: Arrival) -> Path | None:
        name = media.value.removesuffix(" [input]")
        if not (media.known or is_media_name(name) or _leads_away(name)):
            return None
        if len(name) > MAX_KEY_BYTES:
            raise InputRefusedError("it is neither a URL, a data URI, the base64 of a file nor a file's name")
        check_relative(name, what=f"input {media.name}")
        try:
            return _download(self.uploads, name, media, folder, arrival)
        except InputMissingError:
            if found := self._find_local(name, job):
                return found if media.item is None else _copied(found, _target(media, folder, found.name))
            if media.known:
                raise
            return None

    def _find_local(self, name: str, job: Job) -> Path | None:
        """A file of the input directory; other jobs' are none."""
        path = self.input_dir / name
        first = name.partition("/")[0]
        if JOB_ID.fullmatch(first) and first != job.job_id:
            return None
        return path if os.path.isfile(path) else None  # noqa: PTH113  (Path.is_file raises for a name that is too long)


def _leads_away(name: str) -> bool:
    """Whether a name is a path, or one of another folder of the engine's."""
    return name.startswith(("/", "./", "../")) or name.endswith(("[output]", "[temp]"))


def own_prefix(job_id: str) -> str:
    """What the keys of a job's own files begin with."""
    return f"inputs/{job_id}/"


def url_of_prefix(store: ObjectStore, prefix: str) -> str:
    """What the URLs of keys with this prefix begin with; a store gives URLs of whole keys only."""
    return store.object_url(f"{prefix}x").removesuffix("x")


def _target(media: Media, folder: Path, name: str) -> Path:
    """A path in the folder that only this file has; the files of a list are in its order by name, too."""
    whole = _UNSAFE.sub("_", name).encode(errors="replace")
    safe = whole[-_MAX_NAME_BYTES:].decode(errors="ignore").lstrip(". ") or "file"
    return folder / (safe if media.item is None else f"{media.item:05d}-{safe}")


def _write_inline(value: str, path: Path, arrival: Arrival) -> None:
    with path.open("wb") as file:

        def write(data: bytes) -> None:
            arrival.add(len(data))
            file.write(data)

        decode(value, write=write)


def _download(store: ObjectStore, key: str, media: Media, folder: Path, arrival: Arrival) -> Path:
    path = _target(media, folder, key.rpartition("/")[2])
    try:
        copy_object(store, key, path, arrival)
    except ObjectMissingError as error:
        raise InputMissingError(f"no object {store.object_url(key)}; upload it first") from error
    except ObjectChangedError as error:
        raise StorageUnavailableError(f"{store.object_url(key)}: it was replaced while it was read") from error
    return path


def _with_extension(path: Path) -> Path:
    """The file under a name that says what is in it: nodes go by that, and a URL's name need not."""
    with path.open("rb") as file:
        extension = extension_of(file.read(HEAD_BYTES))
    if not extension or is_media_name(path.name):
        return path
    return path.rename(path.with_name(path.name + extension))


def _copied(source: Path, target: Path) -> Path:
    shutil.copyfile(source, target)
    return target

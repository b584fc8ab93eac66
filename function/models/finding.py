"""Where each model of a job is: in the cache, brought by the image, in storage, or nowhere."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from function.errors import InputRefusedError, ModelMissingError, ModelUnavailableError, StorageUnavailableError
from function.models.books import read_books
from function.models.ledger import Place, Wanted
from function.models.records import Record
from function.models.references import LEGACY_FOLDERS, model_errors
from function.storage.objects import ObjectMissingError, TransientStorageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from function.errors import ComfyfnError
    from function.models.directory import ModelDirectory
    from function.models.references import ModelRef
    from function.storage.objects import ObjectInfo
    from function.storage.origins import Origin

_log = logging.getLogger(__name__)

Found: TypeAlias = Wanted | str
"""To be leased, or the ETag of a file that isn't the cache's."""


class Finder:
    """Asks the directory, and storage where that is due.

    Args:
        directory: The files.
        origin_of: Where the file of a reference can be fetched, and its key there.
        clock: Monotonic seconds.
        revalidate_seconds: For how long a file counts as current after storage was asked; 0: ask for every job; None:
            never ask about a file that is there.
        parallel: Questions to storage at a time.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        origin_of: Callable[[ModelRef], tuple[Origin, str]],
        *,
        clock: Callable[[], float],
        revalidate_seconds: float | None,
        parallel: int,
    ) -> None:
        self._directory = directory
        self._origin_of = origin_of
        self._clock = clock
        self._revalidate_seconds = revalidate_seconds
        self._parallel = parallel
        self._current: dict[str, tuple[Record, float]] = {}

    def is_current(self, record: Record, ref: ModelRef) -> bool:
        """Whether a file in place is what the reference means, without asking storage; False if that is due."""
        if record.private or record.source != self._place(ref).object_url:
            return False
        if self._revalidate_seconds is None:
            return True
        known, asked_at = self._current.get(record.key, (record, -math.inf))
        return known.etag == record.etag and self._clock() - asked_at < self._revalidate_seconds

    def find(self, refs: Iterable[ModelRef]) -> dict[str, Found]:
        """Where each file is, by key and in the order of the references; without optional ones that are nowhere.

        Raises:
            ModelMissingError: Naming every file that is nowhere.
            StorageUnavailableError: Storage does not answer about a file that is not here.
            InputRefusedError: Two references mean different contents of one file.
        """
        by_key = _by_key(refs)
        found = self._find_foreign(by_key) if self._directory.read_only else self._find_anywhere(by_key)
        missing = [ref for key, ref in by_key.items() if found[key] is None and not ref.optional]
        if missing:
            with model_errors(missing[0].node_id):
                raise self._missing(missing)
        return {key: item for key in by_key if (item := found[key]) is not None}

    def _find_foreign(self, by_key: Mapping[str, ModelRef]) -> dict[str, Found | None]:
        return {key: self._etag_of_foreign(ref) for key, ref in by_key.items()}

    def _find_anywhere(self, by_key: Mapping[str, ModelRef]) -> dict[str, Found | None]:
        known = {key: record for key in by_key if (record := self._directory.read(key))}
        found: dict[str, Found | None] = {}
        if len(known) < len(by_key):
            with self._directory.locked():
                books = read_books(self._directory)
                known = {key: present.record for key, present in books.present.items()}
                absent = by_key.keys() - known.keys() - books.arriving.keys()
                found = {key: self._etag_of_foreign(by_key[key]) for key in absent}
        current = [key for key in by_key if key in known and self.is_current(known[key], by_key[key])]
        found |= {key: Wanted(known[key], None) for key in current}
        unknown = {key: ref for key, ref in by_key.items() if found.get(key) is None}
        return found | self._find_in_storage(unknown, known)

    def _etag_of_foreign(self, ref: ModelRef) -> str | None:
        """Something that changes with a file that the cache did not bring; None if there is no such file."""
        status = file_of(ref, self._directory)
        return f"{status.st_size}-{status.st_mtime_ns}" if status else None

    def _find_in_storage(self, by_key: Mapping[str, ModelRef], known: Mapping[str, Record]) -> dict[str, Found | None]:
        if not by_key:
            return {}
        with ThreadPoolExecutor(min(self._parallel, len(by_key)), thread_name_prefix="model-head") as pool:
            places = {key: self._place(ref) for key, ref in by_key.items()}
            answers = {key: pool.submit(place.origin.head, place.key) for key, place in places.items()}
        return {key: self._settle(by_key[key], places[key], answer, known.get(key)) for key, answer in answers.items()}

    def _place(self, ref: ModelRef) -> Place:
        return Place(*self._origin_of(ref), ref.credentials)

    def _settle(self, ref: ModelRef, place: Place, answer: Future[ObjectInfo], known: Record | None) -> Wanted | None:
        """What storage's answer means beside what the cache has.

        A plain name that storage does not have means a file of that name from elsewhere: somebody asked for it under
        this name. What a workflow brings by URL has names of its own.
        """
        key = ref.key
        try:
            info = answer.result()
        except (ObjectMissingError, StorageUnavailableError, InputRefusedError) as error:
            if refusal := _refusal(ref, place, known, error):
                with model_errors(ref.node_id):
                    raise refusal from error
            if isinstance(error, InputRefusedError):
                raise
            if known and known.source == place.object_url:
                _log.warning("model %s: the cached file is used; storage: %s", key, error)
                return Wanted(known, None)
            if known and isinstance(error, ObjectMissingError) and ref.source_url is None:
                return Wanted(known, None)
            if isinstance(error, ObjectMissingError):
                return None
            raise
        record = Record(key, info.etag, info.size_bytes, place.object_url, private=ref.private)
        self._current[key] = (record, self._clock())
        return Wanted(record, place)

    def _missing(self, refs: Sequence[ModelRef]) -> ModelMissingError | ModelUnavailableError:
        lines = [
            f"{ref.named_by}: {'model ' if ref.node_id else ''}{ref.filename!r} is neither in {ref.folder} "
            f"nor at {self._place(ref).object_url}"
            for ref in refs
        ]
        if self._directory.read_only:
            lines.append(f"the model directory {self._directory.root} is read-only, so nothing is downloaded")
        details = [
            {"node_id": ref.node_id, "input_name": ref.input_name, "folder": ref.folder, "filename": ref.filename}
            for ref in refs
        ]
        kind = ModelUnavailableError if all(ref.source_url for ref in refs) else ModelMissingError
        return kind("; ".join(lines), details={"missing_models": details})


def _refusal(ref: ModelRef, place: Place, known: Record | None, error: Exception) -> ComfyfnError | None:
    """What an error means for a file that somebody's credentials are needed for; None for any other file.

    A private file is for those whose credentials its source takes now. While that does not answer, it is for nobody,
    and who brings credentials may try again. Credentials that came with a request don't get better by that.
    """
    again = error if isinstance(error, TransientStorageError) and ref.private else None
    if known and known.private:
        line = f"{ref.named_by}: Authentication required to access cached file for URL: {place.object_url}"
        return again or InputRefusedError(line)
    if ref.private and isinstance(error, StorageUnavailableError):
        return again or InputRefusedError(f"{ref.named_by}: {error.message}")
    return None


def file_of(ref: ModelRef, directory: ModelDirectory) -> os.stat_result | None:
    """Status of the file that the engine finds for a reference, whoever brought it; None if it finds none."""
    legacy = LEGACY_FOLDERS.get(ref.folder)
    keys = [ref.key, *([f"{legacy}/{ref.filename}"] if legacy else [])]
    found = (directory.find(key) for key in keys)
    return next((status for status in found if status), None)


def _by_key(refs: Iterable[ModelRef]) -> dict[str, ModelRef]:
    by_key: dict[str, ModelRef] = {}
    for ref in refs:
        if by_key.setdefault(ref.key, ref).source_url != ref.source_url:
            raise InputRefusedError(f"node {ref.node_id}: two sources are given for the model {ref.key}")
    return by_key

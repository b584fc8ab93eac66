"""Who holds the requests of open jobs: one note for each process, however many jobs it holds."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from function.errors import RecordInvalidError
from function.jobs.manifest import MAX_MANIFEST_BYTES, parse_record, to_json
from function.storage.objects import ObjectMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from function.storage.objects import ObjectStore

_log = logging.getLogger("comfyfn.jobs")

HELD_SECONDS = 15.0
"""How often a process says which jobs it holds; who hears nothing three times may dispatch them too."""

FORSAKEN = timedelta(seconds=3 * HELD_SECONDS)
"""After how long a note, or the mark of an open job, says nothing any more, by the store's clock."""

_PREFIX = "held/"


class Holders:
    """Tells which jobs this process holds, and asks which ones others do.

    Args:
        store: Where RESULTS_URL points.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._key = _PREFIX + uuid.uuid4().hex
        self._is_noted = False

    def note(self, job_ids: Iterable[str]) -> None:
        """Say which jobs this process holds, in place of what it said before; one caller at a time."""
        if held := sorted(job_ids):
            self._store.put(self._key, to_json({"jobs": held}), media_type="application/json")
            self._is_noted = True
        elif self._is_noted:
            self._store.delete(self._key)
            self._is_noted = False

    def held(self) -> frozenset[str]:
        """Which jobs are held by processes that live; the notes of others are removed."""
        listing = self._store.list_page(_PREFIX)
        jobs: set[str] = set()
        for info in listing.objects:
            if listing.taken_at - info.modified_at > FORSAKEN:
                self._store.delete(info.key)
            else:
                jobs.update(self._read(info.key))
        return frozenset(jobs)

    def _read(self, key: str) -> list[str]:
        try:
            return parse_record(key, self._store.get(key, max_bytes=MAX_MANIFEST_BYTES), _job_ids)
        except ObjectMissingError:  # it holds none any more
            return []
        except RecordInvalidError as error:
            _log.warning("%s", error.message)
            return []


def _job_ids(record: dict[str, list[str]]) -> list[str]:
    return [str(job_id) for job_id in record["jobs"]]

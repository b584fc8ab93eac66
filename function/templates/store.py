"""The templates under WORKFLOWS_URL, by name."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from function.errors import StorageUnavailableError, TemplateInvalidError, TemplateMissingError
from function.storage.objects import ObjectMissingError
from function.templates.template import fill_template, parse_template, shown_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from function.job import FilledTemplate
    from function.storage.objects import ObjectStore
    from function.templates.template import Template

_log = logging.getLogger("comfyfn.templates")

SUFFIX = ".json"
MAX_TEMPLATE_BYTES = 4 * 1024**2
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*")
_MAX_NAME_CHARACTERS = 200
_MAX_LISTED_KEYS = 10_000
_SHOWN_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class _Cached:
    template: Template
    etag: str
    asked_at: float


class TemplateStore:
    """Templates by name: `upscale` is the object `upscale.json`, `sdxl/refine` is `sdxl/refine.json`.

    Args:
        store: WORKFLOWS_URL.
        revalidate_seconds: For how long a template counts as current after storage was asked for its ETag.
        clock: Monotonic seconds.
    """

    def __init__(
        self, store: ObjectStore, *, revalidate_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._revalidate_seconds = revalidate_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._cached: dict[str, _Cached] = {}

    def names(self) -> list[str]:
        """The names there are, sorted; of a very large store those of the first objects.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        keys = [info.key for info in islice(self._store.list_objects(), _MAX_LISTED_KEYS)]
        return sorted(name for key in keys if key.endswith(SUFFIX) and is_name(name := key.removesuffix(SUFFIX)))

    def fill(self, name: str, parameters: Mapping[str, Any], *, job_id: str) -> FilledTemplate:
        """A template's workflow with values in it; see `fill_template`.

        Raises:
            InvalidRequestError: As `fill_template`.
            TemplateMissingError, TemplateInvalidError, StorageUnavailableError: As `get`.
        """
        return fill_template(self.get(name), parameters, job_id=job_id)

    def get(self, name: str) -> Template:
        """One template as storage has it now, or had it a few seconds ago.

        Raises:
            TemplateMissingError: There is none of this name; it says which there are.
            TemplateInvalidError: Its file is wrong.
            StorageUnavailableError: Storage does not answer, and the template is not known from before.
        """
        if not is_name(name):
            raise self._missing(name)
        known, is_current = self._known(name)
        if known and is_current:
            return known.template
        try:
            return self._load(name, known)
        except ObjectMissingError as error:
            self._forget(name)
            raise self._missing(name) from error
        except StorageUnavailableError as error:
            if known is None:
                raise
            _log.warning("template %s: the one from before is used; storage: %s", name, error)
            return known.template

    def _known(self, name: str) -> tuple[_Cached | None, bool]:
        """What is known and whether it is current; who finds that it isn't asks storage for everybody."""
        with self._lock:
            known = self._cached.get(name)
            now = self._clock()
            if known is None or now - known.asked_at < self._revalidate_seconds:
                return known, known is not None
            self._cached[name] = _Cached(known.template, known.etag, now)
            return known, False

    def _load(self, name: str, known: _Cached | None) -> Template:
        info = self._store.head(name + SUFFIX)
        if known and info.etag == known.etag:
            return known.template
        where = self._store.object_url(info.key)
        if info.size_bytes > MAX_TEMPLATE_BYTES:
            raise TemplateInvalidError(f"template {name} ({where}): larger than {MAX_TEMPLATE_BYTES} bytes")
        # Replaced since its HEAD: then the ETag is the older one's, and the next look brings it again.
        data = self._store.get(info.key, max_bytes=MAX_TEMPLATE_BYTES)
        self._forget(name)  # also if the new one is broken
        template = parse_template(data, name=name, where=where)
        with self._lock:
            self._cached[name] = _Cached(template, info.etag, self._clock())
        return template

    def _forget(self, name: str) -> None:
        with self._lock:
            self._cached.pop(name, None)

    def _missing(self, name: str) -> TemplateMissingError:
        shown = name[:_SHOWN_CHARACTERS]
        return TemplateMissingError(f"there is no template {shown!r} in {self._store.url}; {shown_names(self.names())}")


def is_name(text: str) -> bool:
    """Whether a template can be called so: lower case letters, digits, `_` and `-`, with `/` between folders."""
    return len(text) <= _MAX_NAME_CHARACTERS and _NAME.fullmatch(text) is not None

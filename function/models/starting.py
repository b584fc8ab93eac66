"""Models that are wanted from the start: some before the function is ready, the others beside its jobs."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, DrainingError, RetryableError
from function.models.listing import modern_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from function.models.cache import ModelCache
    from function.models.lookup import ModelLookup
    from function.models.references import ModelRef
    from function.start_manifest import StartModel
    from function.telemetry import Progress

_log = logging.getLogger(__name__)


class StartModels:
    """Brings them in a thread of its own, one after the other.

    What must be there first evicts others for its room, and is tried again where that may help; if it can't be had, the
    start has failed. What may come later evicts none, and is left out if it fails.

    Args:
        lookup: Says which names and URLs are allowed.
        cache: Where the files go.
        first: What must be there before the function is ready.
        later: What may come beside the jobs.
        retry_seconds: Pause before what failed is tried again.
    """

    def __init__(
        self,
        lookup: ModelLookup,
        cache: ModelCache,
        *,
        first: Sequence[StartModel],
        later: Sequence[StartModel],
        retry_seconds: float = 5.0,
    ) -> None:
        self._lookup = lookup
        self._cache = cache
        self._first = first
        self._later = later
        self._retry_seconds = retry_seconds
        self._stopped = threading.Event()
        self._problem = "the models of the manifest are being brought" if first else ""
        self._failed = False

    @property
    def problem(self) -> str:
        """Why not all that must be there is, in one line; "" when it is."""
        return self._problem

    @property
    def failed(self) -> bool:
        """Whether what must be there can't be had: trying again does not help."""
        return self._failed

    def start(self) -> None:
        """Begin to bring them; returns at once."""
        if self._first or self._later:
            threading.Thread(target=self._run, name="start-models", daemon=True).start()

    def stop(self) -> None:
        """Bring no more; what has arrived stays for later."""
        self._stopped.set()

    def _run(self) -> None:
        for number, model in enumerate(self._first, start=1):
            if not self._bring_first(model, f"{number} of {len(self._first)}"):
                return
        self._problem = ""
        for model in self._later:
            if self._stopped.is_set():
                return
            self._bring_later(model)

    def _bring_first(self, model: StartModel, which: str) -> bool:
        """Bring one at all costs; whether it is there."""
        while not self._stopped.is_set():
            self._problem = f"model {model.key} of the manifest is being brought ({which})"
            began = time.monotonic()
            try:
                self._cache.pull(self._reference(model), deadline=math.inf, on_progress=self._go_on)
            except RetryableError as error:
                if not self._stopped.is_set():
                    self._problem = f"manifest: {error.message}; it is tried again"
                    _log.warning("%s", self._problem)
                    self._stopped.wait(self._retry_seconds)
            except ComfyfnError as error:
                self._problem = f"manifest: {error.message}"
                self._failed = True
                _log.error("the start has failed: %s", self._problem)
                return False
            else:
                _log.info("manifest: model %s is here after %.1f s", model.key, time.monotonic() - began)
                return True
        return False

    def _bring_later(self, model: StartModel) -> None:
        began = time.monotonic()
        try:
            there = self._cache.preload(self._reference(model))
        except ComfyfnError as error:
            _log.warning("preload: %s", error.message)
            return
        if there:
            _log.info("preload: model %s is here after %.1f s", model.key, time.monotonic() - began)
        else:
            _log.warning(
                "preload: model %s was left out: there is no room without evicting, or a job needs it", model.key
            )

    def _reference(self, model: StartModel) -> ModelRef:
        folder, _, filename = model.key.partition("/")
        if model.url is None:
            return self._lookup.named(folder, filename)
        return self._lookup.named(modern_folder(folder), filename, source_url=model.url)

    def _go_on(self, _progress: Progress) -> None:
        if self._stopped.is_set():
            raise DrainingError("this pod is shutting down")

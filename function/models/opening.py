"""What a process has about models, built from its settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from function.models.cache import ModelCache
from function.models.lookup import ModelLookup
from function.models.mounts import list_mounts, nfs_problem
from function.models.starting import StartModels
from function.start_manifest import StartModel
from function.storage import open_store
from function.storage.origins import fetch_rules
from function.transfer.client import FetcherProcess

if TYPE_CHECKING:
    from function.config import Settings
    from function.telemetry import Metrics

_log = logging.getLogger("comfyfn.models")


@dataclass(frozen=True, slots=True)
class OpenedModels:
    """Models of one process: which ones are meant, where they lie, what brings them."""

    lookup: ModelLookup
    cache: ModelCache
    fetcher: FetcherProcess
    start_models: StartModels


def open_models(settings: Settings, *, metrics: Metrics) -> OpenedModels:
    """Open the model directory; nothing is connected or started yet.

    Raises:
        OSError: The directory can't be used.
    """
    if problem := nfs_problem(settings.model_dir, list_mounts()):
        _log.warning("MODEL_DIR=%s is on NFS: %s", settings.model_dir, problem)
    store = open_store(settings.models_url)
    lookup = ModelLookup(store, rules=fetch_rules(settings), allow_pickle=settings.allow_pickle_models)
    fetcher = FetcherProcess()
    cache = ModelCache(
        settings.model_dir,
        store,
        fetcher=fetcher,
        origin_of=lookup.origin_of,
        capacity_bytes=settings.cache_capacity_bytes,
        revalidate_seconds=settings.model_revalidate_seconds,
        metrics=metrics,
    )
    later = (*map(StartModel, settings.preload_models), *settings.manifest.after_start)
    start_models = StartModels(lookup, cache, first=settings.manifest.before_start, later=later)
    return OpenedModels(lookup, cache, fetcher, start_models)

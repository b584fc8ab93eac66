"""Finds what a job's graph names: where each model lies, by the settings and by what is in storage."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from function.credentials import account_of, matching_credential
from function.errors import StorageUnavailableError
from function.models.custom import custom_references, names_custom_models
from function.models.references import ModelRef, check_reference, model_references
from function.models.urls import allowed_url
from function.sources import parse_allowed, parse_source_url
from function.storage.origins import open_origin
from function.workflow import check_relative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from function.credentials import UrlCredential
    from function.sources import AllowedUrls
    from function.storage.https import FetchRules
    from function.storage.objects import ObjectStore
    from function.storage.origins import Origin
    from function.workflow import Workflow

_log = logging.getLogger(__name__)


class ModelLookup:
    """Which models a workflow names, and where they come from.

    Args:
        store: MODELS_URL; if it is a bucket, the URLs of its objects are allowed whatever the rules say.
        rules: Which other URLs a workflow may name, and how they are fetched.
        allow_pickle: Accept file formats that run code when they are loaded.
        listing_seconds: For how long a listing of the store counts as current. There is one only for jobs that name
            models of nodes which are not ComfyUI's own.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        rules: FetchRules,
        allow_pickle: bool = False,
        listing_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allow = (*rules.allow, *_objects_of(store))
        self._store = store
        self._rules = rules
        self._allow_pickle = allow_pickle
        self._listing_seconds = listing_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._listed: tuple[float, list[str]] | None = None
        self._origins: dict[str, Origin] = {}

    def references(
        self, workflow: Workflow, keys: Iterable[str] = (), *, credentials: tuple[UrlCredential, ...] = ()
    ) -> tuple[ModelRef, ...]:
        """Every model file that the workflow names, and these below MODELS_URL.

        Args:
            workflow: A parsed graph.
            keys: Models that it does not name.
            credentials: What its sender brought for URLs in it.

        Raises:
            InputRefusedError: A name, a file format or a URL that is not allowed.
            ModelAmbiguousError: A name that fits several objects.
            StorageUnavailableError: The store had to be listed and never answered.
        """
        named = model_references(workflow, allow_pickle=self._allow_pickle, allow=self._allow)
        found = tuple(self._with_credentials(reference, credentials, private=True) for reference in named)
        found += tuple(self.named(*key.split("/", 1)) for key in keys)
        if not names_custom_models(workflow):
            return found
        return found + custom_references(workflow, self._keys(), allow_pickle=self._allow_pickle)

    def named(
        self, folder: str, filename: str, *, source_url: str | None = None, credentials: tuple[UrlCredential, ...] = ()
    ) -> ModelRef:
        """A model that no workflow names: one of MODELS_URL by its key, or any by URL under a name of the caller's.

        Raises:
            InputRefusedError: A name, a file format or a URL that is not allowed.
        """
        reference = ModelRef(folder, filename, "", "", source_url)
        check_relative(reference.key, what=reference.named_by)
        check_reference(reference, allow_pickle=self._allow_pickle)
        if source_url is not None:
            allowed_url(source_url, self._allow, what=reference.named_by)
        return self._with_credentials(reference, credentials, private=False)

    def _with_credentials(
        self, reference: ModelRef, credentials: tuple[UrlCredential, ...], *, private: bool
    ) -> ModelRef:
        """The reference with what requests for its URL carry beside the settings' own, or with the account of a bucket.

        Where one of the credentials is meant for a URL, the others may be meant for what it redirects to.
        """
        url = reference.source_url or ""
        given = matching_credential(credentials, url)
        found = given or matching_credential(self._rules.credentials, url)
        if found and found.account:
            return replace(reference, credentials=(found,), private=private and given is not None)
        if given is None:
            return reference
        return replace(reference, credentials=credentials, private=private)

    def origin_of(self, reference: ModelRef) -> tuple[Origin, str]:
        """Where a model comes from, and its key there, which may hold a secret (see `Origin`)."""
        if reference.source_url is None:
            return self._store, reference.key
        url = parse_source_url(reference.source_url)
        target = url.target.removeprefix("/")
        if reference.credentials:
            rules = replace(self._rules, credentials=reference.credentials + self._rules.credentials)
            return open_origin(url.origin, rules=rules, account=account_of(reference.credentials)), target
        with self._lock:
            if url.origin not in self._origins:
                self._origins[url.origin] = open_origin(url.origin, rules=self._rules)
            return self._origins[url.origin], target

    def _keys(self) -> list[str]:
        """Every key of the store; an old listing where it does not answer."""
        with self._lock:
            if self._listed and self._clock() - self._listed[0] < self._listing_seconds:
                return self._listed[1]
            try:
                self._listed = self._clock(), [info.key for info in self._store.list_objects()]
            except StorageUnavailableError as error:
                if not self._listed:
                    raise
                _log.warning("an earlier listing of the models is used: %s", error)
            return self._listed[1]


def _objects_of(store: ObjectStore) -> tuple[AllowedUrls, ...]:
    """The URLs of a bucket's objects; of a prefix that no URL can name there are none."""
    try:
        return (parse_allowed(store.url),) if store.url.startswith("s3://") else ()
    except ValueError:
        return ()

"""A workflow that runs after each start of the engine, before the function counts as ready."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, RetryableError, StorageUnavailableError
from function.sources import AllowedUrls

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.engine.supervisor import EngineState, Supervisor
    from function.sources import SourceUrl
    from function.storage.https import FetchRules
    from function.workflow import Workflow

_log = logging.getLogger("comfyfn")


class WarmUp:
    """Runs the warm-up in a thread of its own, once for each process of the engine that gets ready.

    What may succeed later (storage is away) is tried again; any other failure stays until the engine is started anew.

    Args:
        run: Runs the warm-up to its end; raises ComfyfnError, or whatever a mistake of ours may raise.
        retry_seconds: Pause before a failed one is tried again.
    """

    def __init__(self, run: Callable[[], object], *, retry_seconds: float = 5.0) -> None:
        self._run = run
        self._retry_seconds = retry_seconds
        self._changed = threading.Condition()
        self._engine: EngineState | None = None
        self._settled = 0
        self._problem = ""
        self._stopping = False
        self._thread = threading.Thread(target=self._keep_warm, name="warm-up", daemon=True)

    def start(self, supervisor: Supervisor) -> None:
        """Begin to follow the engine."""
        supervisor.subscribe(self._see)
        self._thread.start()

    def stop(self) -> None:
        """Run no more; what runs now ends with the engine."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def problem(self) -> str:
        """Why the engine is not warm, in one line; "" when it is, or is not ready itself."""
        with self._changed:
            if self._engine and self._engine.ready and self._settled != self._engine.generation:
                return self._problem or "the warm-up is running"
            return self._problem

    def _see(self, state: EngineState) -> None:
        with self._changed:
            self._engine = state
            self._changed.notify_all()

    def _keep_warm(self) -> None:
        while generation := self._next_generation():
            started = time.monotonic()
            try:
                self._run()
            except RetryableError as error:
                self._note(f"the warm-up failed and is tried again: {error.message}")
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, self._retry_seconds)
            except ComfyfnError as error:
                self._note(f"the warm-up failed: {error.message}", settled=generation)
            except Exception as error:  # noqa: BLE001  (without this thread no later engine would ever be warm)
                self._note(f"the warm-up failed: {type(error).__name__}: {error}", settled=generation, with_trace=True)
            else:
                _log.info("the warm-up took %.2f s", time.monotonic() - started)
                self._note("", settled=generation)

    def _next_generation(self) -> int:
        """Wait for an engine that is ready and cold; its generation, 0 to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._cold_generation())
            return 0 if self._stopping else self._cold_generation()

    def _cold_generation(self) -> int:
        state = self._engine
        return state.generation if state and state.ready and state.generation != self._settled else 0

    def _note(self, problem: str, *, settled: int = 0, with_trace: bool = False) -> None:
        if problem:
            _log.error("%s", problem, exc_info=with_trace)
        with self._changed:
            self._problem = problem
            self._settled = settled or self._settled


def fetch_workflow(url: SourceUrl, *, rules: FetchRules, max_bytes: int) -> Workflow:
    """The workflow that WARMUP_PROMPT_URL has at this moment. Whatever is wrong with it may be mended while we run.

    Args:
        url: An `https://` or `s3://` URL; no rule has to allow it, because the operator named it.
        rules: What redirects may lead to, and what requests carry.
        max_bytes: The largest document.

    Raises:
        StorageUnavailableError: There is none, it can't be read, or it is no workflow.
    """
    from function.workflow import parse_workflow  # noqa: PLC0415  (the process starts without it; as below)

    try:
        return parse_workflow(json.loads(_read(url, rules, max_bytes)))
    except ComfyfnError as error:
        raise StorageUnavailableError(f"WARMUP_PROMPT_URL: {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise StorageUnavailableError(f"WARMUP_PROMPT_URL: {url} is not JSON") from error


def _read(url: SourceUrl, rules: FetchRules, max_bytes: int) -> bytes:
    from function.storage import open_store  # noqa: PLC0415
    from function.storage.https import HttpsOrigin  # noqa: PLC0415
    from function.storage.objects import ObjectMissingError  # noqa: PLC0415

    try:
        if url.scheme == "s3":
            return open_store(f"s3://{url.host}").get(url.path.removeprefix("/"), max_bytes=max_bytes)
        named = AllowedUrls(url.scheme, url.host, url.port, url.path)
        origin = HttpsOrigin(url.origin, rules=replace(rules, allow=(*rules.allow, named)))
        return origin.get(url.target.removeprefix("/"), max_bytes=max_bytes)
    except ObjectMissingError as error:
        raise StorageUnavailableError(f"{url}: there is no such file") from error

"""A workflow that runs after each start of the engine, before the function counts as ready."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from function.errors import ComfyfnError, RetryableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.engine.supervisor import EngineState, Supervisor

_log = logging.getLogger("comfyfn")


class WarmUp:
    """Runs the warm-up in a thread of its own, once for each process of the engine that gets ready.

    What may succeed later (storage is away) is tried again; a failure for good stays until the engine is started anew.

    Args:
        run: Runs the warm-up to its end; raises ComfyfnError.
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

    def _note(self, problem: str, *, settled: int = 0) -> None:
        if problem:
            _log.error("%s", problem)
        with self._changed:
            self._problem = problem
            self._settled = settled or self._settled

"""The queue of prompts and the history of finished ones. In memory only: a restart forgets both, as ComfyUI's does."""

from __future__ import annotations

import heapq
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

HISTORY_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    """One accepted prompt; the smaller `number` runs first."""

    number: float
    prompt_id: str
    prompt: Mapping[str, Any]
    extra_data: Mapping[str, Any]
    outputs: tuple[str, ...]

    def as_json(self) -> list[Any]:
        """As `/queue` and the history show it."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, list(self.outputs)]


@dataclass(slots=True)
class Outcome:
    """What a prompt left behind.

    Attributes:
        success: Whether it ran to its end.
        messages: The messages of its start and end, as the history shows them.
        outputs: Node id -> what it showed.
        meta: Node id -> which node that was.
    """

    success: bool = False
    messages: list[list[Any]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def as_json(self, item: QueuedPrompt) -> dict[str, Any]:
        """As the history shows it."""
        status = "success" if self.success else "error"
        return {
            "prompt": item.as_json(),
            "outputs": self.outputs,
            "status": {"status_str": status, "completed": self.success, "messages": self.messages},
            "meta": self.meta,
        }


class PromptQueue:
    """Prompts in order, the running one, and the finished ones; safe to use from several threads.

    Args:
        on_change: Called after each change of the queue's length, before anybody else sees the change: so messages
            about the queue and about the run come in ComfyUI's order. It may read the queue.
        history_size: How many finished prompts are kept.
    """

    def __init__(self, on_change: Callable[[], None], *, history_size: int = HISTORY_SIZE) -> None:
        self._on_change = on_change
        self._history_size = history_size
        self._changed = threading.Condition()
        self._tickets = itertools.count()
        self._pending: list[tuple[float, int, QueuedPrompt]] = []
        self._running: QueuedPrompt | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self._free_memory = False

    def put(self, item: QueuedPrompt) -> None:
        """Queue a prompt."""
        with self._changed:
            heapq.heappush(self._pending, (item.number, next(self._tickets), item))
            self._on_change()
            self._changed.notify()

    def take(self) -> QueuedPrompt | None:
        """Wait for the next prompt and mark it running; None when memory was asked to be freed instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._free_memory)
            if self._free_memory:
                self._free_memory = False
                return None
            self._running = heapq.heappop(self._pending)[2]
            self._on_change()
            return self._running

    def finish(self, item: QueuedPrompt, outcome: Outcome) -> None:
        """Move the running prompt into the history."""
        with self._changed:
            self._running = None
            self._history.pop(item.prompt_id, None)
            self._history[item.prompt_id] = outcome.as_json(item)
            if len(self._history) > self._history_size:
                del self._history[next(iter(self._history))]
            self._on_change()

    def free_memory(self) -> None:
        """Ask the worker to drop its cache before the next prompt."""
        with self._changed:
            self._free_memory = True
            self._changed.notify()

    def delete(self, prompt_ids: Collection[str]) -> None:
        """Drop pending prompts; unknown and running ones stay as they are."""
        self._keep(lambda item: item.prompt_id not in prompt_ids)

    def clear(self) -> None:
        """Drop every pending prompt."""
        self._keep(lambda _: False)

    def _keep(self, wanted: Callable[[QueuedPrompt], bool]) -> None:
        with self._changed:
            before = len(self._pending)
            self._pending = [entry for entry in self._pending if wanted(entry[2])]
            heapq.heapify(self._pending)
            if len(self._pending) != before:
                self._on_change()

    def is_running(self, prompt_id: str) -> bool:
        """Whether this prompt is the running one."""
        with self._changed:
            return self._running is not None and self._running.prompt_id == prompt_id

    def remaining(self) -> int:
        """How many prompts wait or run."""
        with self._changed:
            return len(self._pending) + (self._running is not None)

    def info(self) -> dict[str, Any]:
        """How many prompts are left, in the shape that `GET /prompt` and the socket's `status` share."""
        return {"exec_info": {"queue_remaining": self.remaining()}}

    def snapshot(self) -> dict[str, Any]:
        """The body of `GET /queue`."""
        with self._changed:
            running = [] if self._running is None else [self._running.as_json()]
            pending = [entry[2].as_json() for entry in sorted(self._pending, key=lambda entry: entry[:2])]
        return {"queue_running": running, "queue_pending": pending}

    def history(self, *, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Finished prompts, oldest first: `max_items` from `offset` on, the newest ones where that is negative."""
        with self._changed:
            entries = list(self._history.items())
        if max_items is None:
            return dict(entries[max(offset, 0) :])
        start = max(len(entries) - max_items, 0) if offset < 0 else offset
        return dict(entries[start : start + max_items])

    def entry(self, prompt_id: str) -> dict[str, Any]:
        """`{id: entry}` of a finished prompt; empty for any other."""
        with self._changed:
            return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}

    def forget(self, prompt_ids: Collection[str]) -> None:
        """Drop finished prompts from the history."""
        with self._changed:
            for prompt_id in prompt_ids:
                self._history.pop(prompt_id, None)

    def forget_all(self) -> None:
        """Empty the history."""
        with self._changed:
            self._history.clear()

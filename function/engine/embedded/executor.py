"""Running prompts one after the other, with ComfyUI's cache, messages and history."""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from function.engine.embedded.errors import InterruptedRunError, type_name_of
from function.engine.embedded.graph import Order, is_link, signatures
from function.engine.embedded.nodes.node import Context, Node, Shown
from function.engine.embedded.progress import ProgressState
from function.engine.embedded.prompts import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from function.engine.embedded.folders import Folders
    from function.engine.embedded.prompts import PromptQueue, QueuedPrompt


class Send(Protocol):
    """Sends one message to a client, or to all."""

    def __call__(self, event: str, data: dict[str, Any], client_id: str | None = None) -> None:
        """Queue the message."""


@dataclass(frozen=True, slots=True)
class _Cached:
    outputs: tuple[Any, ...]
    ui: Mapping[str, Any] | None


class Executor:
    """Executes prompts; `run_forever` belongs to one thread, the rest may be called from any.

    Args:
        nodes: Loads the classes of nodes there are; the worker calls it first, so that the port opens before that.
        folders: Where files are.
        queue: Where prompts come from and go to.
        send: Where messages go.
        metadata: Whether saved images carry the prompt.
        keep_cache: Whether results outlive their prompt.
    """

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, Node]],
        folders: Folders,
        queue: PromptQueue,
        send: Send,
        *,
        metadata: bool = True,
        keep_cache: bool = True,
    ) -> None:
        self.nodes = nodes
        self.folders = folders
        self.send = send
        self.metadata = metadata
        self._queue = queue
        self._keep_cache = keep_cache
        self._interrupted = threading.Event()
        self._cache: dict[str, _Cached] = {}
        self._running: tuple[str | None, str] | None = None

    def run_forever(self) -> None:
        """Take prompts from the queue and execute them."""
        self.nodes()
        while True:
            item = self._queue.take()
            if item is None:
                self._cache.clear()
                continue
            client_id = item.extra_data.get("client_id")
            self._queue.finish(item, self.execute(item))
            if client_id is not None:
                self.send("executing", {"node": None, "prompt_id": item.prompt_id}, client_id)

    def execute(self, item: QueuedPrompt) -> Outcome:
        """Run one prompt; what its nodes raise becomes part of the outcome."""
        self._interrupted.clear()
        if not self._keep_cache:
            self._cache.clear()
        outcome = _Run(self, item, self._cache).execute()
        self._running = None
        return outcome

    def interrupt(self) -> None:
        """Stop the running prompt at its next step; without one nothing happens."""
        self._interrupted.set()

    def stop_if_interrupted(self) -> None:
        """Called between steps.

        Raises:
            InterruptedRunError: Somebody interrupted the run.
        """
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise InterruptedRunError

    def running_node(self, client_id: str) -> str | None:
        """The node that runs for this client at this moment."""
        running = self._running
        return running[1] if running is not None and running[0] == client_id else None

    def note_running(self, client_id: str | None, node_id: str) -> None:
        """Remember the running node for clients that connect meanwhile."""
        self._running = (client_id, node_id)


class _Run:
    """One execution of one prompt."""

    def __init__(self, executor: Executor, item: QueuedPrompt, cache: dict[str, _Cached]) -> None:
        self._executor = executor
        self._item = item
        self._cache = cache
        self._client_id: str | None = item.extra_data.get("client_id")
        self._progress = ProgressState(item.prompt_id, self._send)
        self._outcome = Outcome()
        self._executed: list[str] = []
        self._signatures: dict[str, str] = {}

    def execute(self) -> Outcome:
        prompt = self._item.prompt
        self._message("execution_start", {})
        self._signatures = signatures(prompt, self._fingerprint)
        for stale in self._cache.keys() - set(self._signatures.values()):
            del self._cache[stale]
        self._message("execution_cached", {"nodes": [node_id for node_id in prompt if self._is_cached(node_id)]})
        order = Order(prompt, self._item.outputs, is_cached=self._is_cached, is_output=self._is_output)
        self._outcome.success = all(self._node_done(node_id) for node_id in order)
        if self._outcome.success:
            self._message("execution_success", {})
        self._collect()
        return self._outcome

    def _node(self, node_id: str) -> Node:
        return self._executor.nodes()[self._item.prompt[node_id]["class_type"]]

    def _is_output(self, node_id: str) -> bool:
        return self._node(node_id).is_output

    def _is_cached(self, node_id: str) -> bool:
        return self._signatures.get(node_id) in self._cache

    def _fingerprint(self, node_id: str) -> str:
        node = self._node(node_id)
        own_id = node_id if "UNIQUE_ID" in node.hidden.values() else ""  # such a node may answer with its id
        if node.fingerprint is None:
            return own_id
        try:
            return own_id + node.fingerprint(self._executor.folders, self._item.prompt[node_id]["inputs"])
        except (OSError, LookupError):
            return f"unreadable at {time.monotonic_ns()}"  # never equal to another: the node runs and fails itself

    def _node_done(self, node_id: str) -> bool:
        """Run one node or take it from the cache; False where that ends the run."""
        if self._is_cached(node_id):
            self._tell_executed(node_id, self._cache[self._signatures[node_id]].ui)
            self._progress.finish(node_id)
            return True
        self._progress.start(node_id)
        inputs: dict[str, Any] = {}
        try:
            inputs |= self._inputs(node_id)
            self._tell_executing(node_id)
            self._executor.stop_if_interrupted()
            result = self._call(node_id, inputs)
        except InterruptedRunError:
            self._message("execution_interrupted", self._place(node_id), to_all=True)
            return False
        except Exception as error:  # noqa: BLE001  (nodes raise anything; all of it is reported as execution_error)
            self._message("execution_error", self._place(node_id) | self._failure(node_id, error, inputs))
            return False
        self._keep(node_id, result)
        self._progress.finish(node_id)
        self._executed.append(node_id)
        return True

    def _inputs(self, node_id: str) -> dict[str, Any]:
        """The values of the declared inputs, links followed."""
        given = self._item.prompt[node_id]["inputs"]
        return {
            name: self._linked(given[name]) if is_link(given[name]) else given[name]
            for name in self._node(node_id).all_inputs()
            if name in given
        }

    def _linked(self, link: list[Any]) -> object:
        return self._cache[self._signatures[link[0]]].outputs[link[1]]

    def _call(self, node_id: str, inputs: dict[str, Any]) -> tuple[Any, ...] | Shown:
        node = self._node(node_id)
        if not node.uses_context:
            return node.run(**inputs)

        def progress(value: int, maximum: int) -> None:
            self._executor.stop_if_interrupted()
            self._progress.advance(node_id, value, maximum)

        context = Context(
            folders=self._executor.folders,
            progress=progress,
            prompt=self._item.prompt,
            extra_pnginfo=self._item.extra_data.get("extra_pnginfo"),
            metadata=self._executor.metadata,
        )
        return node.run(context, **inputs)

    def _keep(self, node_id: str, result: tuple[Any, ...] | Shown) -> None:
        cached = _Cached((), result.ui) if isinstance(result, Shown) else _Cached(result, None)
        if cached.ui is not None:
            self._tell_executed(node_id, cached.ui)
        self._cache[self._signatures[node_id]] = cached

    def _collect(self) -> None:
        """What the prompt's nodes show, cached ones included."""
        for node_id in self._item.prompt:
            cached = self._cache.get(self._signatures.get(node_id, ""))
            if cached is not None and cached.ui is not None:
                self._outcome.outputs[node_id] = cached.ui
                self._outcome.meta[node_id] = {
                    "node_id": node_id,
                    "display_node": node_id,
                    "parent_node": None,
                    "real_node_id": node_id,
                }

    def _place(self, node_id: str) -> dict[str, Any]:
        node_type = self._item.prompt[node_id]["class_type"]
        return {"node_id": node_id, "node_type": node_type, "executed": list(self._executed)}

    def _failure(self, node_id: str, error: Exception, inputs: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: [_shown(value)] for name, value in {**inputs, **self._hidden(node_id)}.items()}
        return {
            "exception_message": f"{error}\n",
            "exception_type": type_name_of(error),
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": shown,
            "current_outputs": list(self._item.prompt),
        }

    def _hidden(self, node_id: str) -> dict[str, Any]:
        values = {
            "PROMPT": self._item.prompt,
            "EXTRA_PNGINFO": self._item.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node_id,
        }
        return {name: values[kind] for name, kind in self._node(node_id).hidden.items()}

    def _tell_executing(self, node_id: str) -> None:
        self._executor.note_running(self._client_id, node_id)
        self._tell("executing", {"node": node_id, "display_node": node_id, "prompt_id": self._item.prompt_id})

    def _tell_executed(self, node_id: str, ui: Mapping[str, Any] | None) -> None:
        about = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": self._item.prompt_id}
        self._tell("executed", about)

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        if self._client_id is not None:
            self._send(event, data)

    def _send(self, event: str, data: dict[str, Any]) -> None:
        self._executor.send(event, data, self._client_id)

    def _message(self, event: str, data: dict[str, Any], *, to_all: bool = False) -> None:
        """A message that the history keeps too; without a client only `to_all` messages are sent."""
        stamped = {"prompt_id": self._item.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self._outcome.messages.append([event, stamped])
        if to_all:
            self._send(event, stamped)
        else:
            self._tell(event, stamped)


def _shown(value: object) -> object:
    return value if value is None or isinstance(value, int | float | str) else str(value)

"""The engine's node classes: asked once per engine process, kept on disk for the time that the next one boots."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from contextlib import closing
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from function.engine.api import EngineApi
from function.engine.command import engine_command
from function.engine.process import HOST
from function.errors import EngineUnavailableError
from function.validation.definitions import Definitions, parse_definitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from function.config import Settings
    from function.engine.command import EngineCommand
    from function.engine.supervisor import EngineState, Supervisor
    from function.workflow import Workflow

_log = logging.getLogger("comfyfn.engine")

_FETCH_SECONDS = 60.0
"""An engine with many custom nodes lists thousands of files for this answer."""

# `**` alone would leave out packs that are links.
_CUSTOM_NODES = ("custom_nodes/*.py", "custom_nodes/*/**/*.py")
_OWN_CUSTOM_NODE = "websocket_image_save.py"
_NODE_SOURCES = (
    "comfyui_version.py",
    "nodes.py",
    "comfy_extras/*.py",
    *_CUSTOM_NODES,
    "function/engine/embedded/nodes/*.py",
)
"""Files that tell one set of nodes from another, below the engine's directory."""


def fetch_answers(host: str, port: int) -> dict[str, Any]:
    """What the engine says of its node classes: `object_info` and `node_replacements`.

    Raises:
        EngineUnavailableError: It does not answer.
    """
    with closing(EngineApi(host, port)) as api:
        return {
            "object_info": api.object_info(timeout_seconds=_FETCH_SECONDS),
            "node_replacements": api.node_replacements(),
        }


def lacks_class(host: str, port: int, class_type: str) -> bool:
    """Whether the engine has no such node class.

    Raises:
        EngineUnavailableError: It does not answer.
    """
    with closing(EngineApi(host, port)) as api:
        return api.lacks_class(class_type)


def fingerprint(command: EngineCommand) -> str:
    """What tells one engine from another before it runs: its command, and name, size and time of its nodes' files.

    Other Python packages don't count; nor do directories, whose time changes when Python writes its caches.
    """
    files = sorted(_files(command, _NODE_SOURCES))
    return hashlib.sha256(json.dumps([command.argv, *map(_facts, files)]).encode()).hexdigest()


def has_custom_nodes(command: EngineCommand) -> bool:
    """Whether there are nodes that are not the engine's own; ComfyUI comes with one in their directory."""
    return any(path.name != _OWN_CUSTOM_NODE for path in _files(command, _CUSTOM_NODES))


def _files(command: EngineCommand, patterns: Sequence[str]) -> Iterator[Path]:
    """Files below the engine's directory, and below those that its command names and that have custom nodes."""
    roots = {command.cwd, *(command.cwd / part.rpartition("=")[2] for part in command.argv)}
    with_nodes = sorted(root for root in roots if root == command.cwd or _is_directory(root / "custom_nodes"))
    return (path for root in with_nodes for pattern in patterns for path in root.glob(pattern))


def _is_directory(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (Path.is_dir raises for an argument that is too long to be a name)


def _facts(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link, or gone in this moment
        return str(path), 0, 0
    return str(path), status.st_size, status.st_mtime_ns


class NodeCatalogue:
    """What the engine knows of its nodes, from the moment its process starts, if an earlier one has been asked.

    Args:
        path: Where the answers are kept; written whole or not at all.
        fingerprint: Of the engine's installation and command: answers of another one don't count.
        fetch: Asks the engine at a host and port; raises EngineUnavailableError.
        lacks: Asks it whether it has no such class; raises EngineUnavailableError.
        customised: Whether there are nodes that are not the engine's own.
    """

    def __init__(
        self,
        path: Path,
        *,
        fingerprint: str,
        fetch: Callable[[str, int], dict[str, Any]] = fetch_answers,
        lacks: Callable[[str, int, str], bool] = lacks_class,
        customised: bool = True,
    ) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._fetch = fetch
        self._lacks = lacks
        self._customised = customised
        self._engine: EngineState | None = None
        self._definitions: Definitions | None = None
        self._asked_generation = 0

    @property
    def definitions(self) -> Definitions | None:
        """The node classes; None as long as no engine like this one was ever asked."""
        return self._definitions

    def undescribed(self, workflow: Workflow) -> frozenset[str]:
        """Classes of a workflow that the engine may have although it did not describe them.

        ComfyUI leaves out a class whose inputs can't be listed at that moment, for example because the folder of its
        models is empty. Of several that it doesn't have one is asked for, which is enough for a refusal.
        """
        if not self._definitions or not self._customised:
            return frozenset()
        unknown = {node["class_type"] for node in workflow.values() if not self._definitions.node(node["class_type"])}
        return frozenset(takewhile(self._may_have, sorted(unknown)))

    def _may_have(self, class_type: str) -> bool:
        """Whether the engine has a class, or can't be asked now."""
        try:
            return not (self._engine and self._engine.ready and self._lacks(HOST, self._engine.port, class_type))
        except EngineUnavailableError:
            return True

    def load(self) -> None:
        """Take the answers that are kept on disk, if they are of this installation; a broken file counts as none."""
        try:
            kept = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return
        if isinstance(kept, dict) and kept.get("fingerprint") == self._fingerprint:
            self._take(kept)

    def follow(self, supervisor: Supervisor) -> None:
        """Ask each engine process once it is ready, in a thread of its own; no job waits for the answer."""
        supervisor.subscribe(self._on_state)

    def refresh(self, port: int) -> None:
        """Ask the engine on this port and keep what it says; what was known stays when it does not answer."""
        try:
            answers = self._fetch(HOST, port)
            self._take(answers)
            self._keep(answers)
        except EngineUnavailableError as error:
            _log.warning("the engine's nodes are not known anew: %s", error.message)
        except OSError as error:
            _log.warning("the engine's nodes are not kept for its next start: %s", error)

    def _on_state(self, state: EngineState) -> None:
        self._engine = state
        if state.ready and state.generation != self._asked_generation:
            self._asked_generation = state.generation
            threading.Thread(target=self.refresh, args=(state.port,), name="node-catalogue", daemon=True).start()

    def _take(self, answers: dict[str, Any]) -> None:
        object_info, replacements = answers.get("object_info"), answers.get("node_replacements")
        if isinstance(object_info, dict) and isinstance(replacements, dict) and object_info:
            self._definitions = parse_definitions(object_info, replacements)

    def _keep(self, answers: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"fingerprint": self._fingerprint, **answers}), encoding="utf-8")
        part.replace(self._path)


def open_catalogue(settings: Settings) -> NodeCatalogue:
    """The nodes of the engine that the settings name, as far as an earlier process was told."""
    path = settings.data_dir / "engine" / "nodes.json"
    command = engine_command(settings)
    catalogue = NodeCatalogue(path, fingerprint=fingerprint(command), customised=has_custom_nodes(command))
    catalogue.load()
    return catalogue

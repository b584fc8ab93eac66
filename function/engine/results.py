"""What a run left behind: ComfyUI's history entry and its refusals, turned into our result and our errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from function.errors import (
    EngineUnavailableError,
    InterruptedJobError,
    InvalidWorkflowError,
    JobFailedError,
    ModelMissingError,
    NodeFailedError,
    OutOfMemoryError,
)
from function.workflow import NO_OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    OnOutputs: TypeAlias = Callable[[tuple["EngineFile", ...]], None]

_LINE_CHARACTERS = 300
_OUT_OF_MEMORY_TYPES = frozenset({"OutOfMemoryError", "MemoryError"})
_OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory")
_MODEL_NOT_FOUND = re.compile(r"Model in folder '(?P<folder>[^']*)' with filename '(?P<filename>[^']*)' not found")
_ENDS = frozenset({"execution_error", "execution_interrupted"})
_TEXT = "text"


@dataclass(frozen=True, slots=True)
class EngineFile:
    """One file that a node reported.

    Attributes:
        node_id: The node of the workflow.
        kind: ComfyUI's key for it: `images`, `audio`, `gifs`, ... A video may arrive under `images`.
        filename: Its name; hostile until checked.
        subfolder: Its folder below the directory of `folder_type`, "" for none; hostile until checked.
        folder_type: `output`, `temp` or `input`.
    """

    node_id: str
    kind: str
    filename: str
    subfolder: str
    folder_type: str


@dataclass(frozen=True, slots=True)
class EngineRun:
    """A workflow that ran to its end.

    Attributes:
        prompt_id: ComfyUI's id of the run.
        files: In the order of nodes as ComfyUI reports them.
        texts: Text outputs: node id to its strings.
        node_seconds: Time of each node that ran, as seen from here; a node from the cache is not listed.
        execution: When it ran, in ms since 1970: `start` and `end` as the engine noted them, and `nodes`, node id to
            its start.
    """

    prompt_id: str
    files: tuple[EngineFile, ...] = ()
    texts: dict[str, list[str]] = field(default_factory=dict)
    node_seconds: dict[str, float] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)


def parse_run(
    prompt_id: str,
    entry: Mapping[str, Any],
    *,
    node_seconds: Mapping[str, float],
    node_starts: Mapping[str, int] | None = None,
) -> EngineRun:
    """Read the history entry of a run that ended.

    Every list that holds objects with a `filename` counts as files, whatever its key: custom nodes invent keys.

    Raises:
        NodeFailedError: A node raised; named with its class, without a stack trace.
        ModelMissingError: A loader didn't find its file (loaders that don't check when the workflow is accepted).
        OutOfMemoryError: The engine's memory did not suffice.
        InterruptedJobError: Somebody interrupted it.
        EngineUnavailableError: It is no history entry.
    """
    try:
        status = entry.get("status") or {}
        if status.get("status_str") != "success" or _ended_early(status):
            raise _failure(status)
        outputs = [(_shown_node(entry, node_id), output) for node_id, output in (entry.get("outputs") or {}).items()]
        files = tuple(file for node_id, output in outputs for file in _files(node_id, output))
        texts = _texts(outputs)
        execution = _times(status) | {"nodes": dict(node_starts or {})}
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise EngineUnavailableError("the engine's record of the run is not what ComfyUI writes") from error
    return EngineRun(prompt_id, files, texts, dict(node_seconds), execution)


def _ended_early(status: Mapping[str, Any]) -> bool:
    """Whether a run that ComfyUI calls a success was none: it calls one so that it gave up for a dependency cycle.

    That of a blocked branch, which is no failure, is told to the socket alone.
    """
    return any(kind in _ENDS for kind, _data in status.get("messages") or ())


def _times(status: Mapping[str, Any]) -> dict[str, int]:
    """When the run began and ended, by the messages that the engine kept of it."""
    noted = {kind: data.get("timestamp") for kind, data in status.get("messages") or ()}
    ends = {"start": noted.get("execution_start"), "end": noted.get("execution_success")}
    return {name: at for name, at in ends.items() if isinstance(at, int)}


def _shown_node(entry: Mapping[str, Any], node_id: str) -> str:
    """The workflow's node for one that a node added while it ran: the editor shows outputs there, and so do we."""
    meta = (entry.get("meta") or {}).get(node_id) or {}
    return str(meta.get("display_node") or node_id)


def ignore_outputs(_files: tuple[EngineFile, ...]) -> None:
    """The observer of a caller who waits for the end of a run."""


def parse_executed(message: Mapping[str, Any], *, prompt_id: str) -> tuple[EngineFile, ...]:
    """The files that a message of the socket announces; none unless it is this run's `executed`.

    ComfyUI sends it after the node has returned, with what the history will hold once the whole run has ended, and for
    a node from the cache too.
    """
    data = message.get("data")
    if message.get("type") != "executed" or not isinstance(data, dict) or data.get("prompt_id") != prompt_id:
        return ()
    output = data.get("output")  # null for a node from the cache that shows nothing
    node_id = str(data.get("display_node") or data.get("node"))
    return tuple(_files(node_id, output)) if isinstance(output, dict) else ()


def _files(node_id: str, output: Mapping[str, Any]) -> Iterator[EngineFile]:
    for kind, items in output.items():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and isinstance(item.get("filename"), str):
                yield EngineFile(
                    node_id=node_id,
                    kind=kind,
                    filename=item["filename"],
                    subfolder=str(item.get("subfolder") or ""),
                    folder_type=str(item.get("type") or "output"),
                )


def _texts(outputs: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for node_id, output in outputs:
        value = output.get(_TEXT)
        if strings := [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]:
            texts.setdefault(node_id, []).extend(strings)
    return texts


def _failure(status: Mapping[str, Any]) -> JobFailedError:
    """The error in a status; an interrupt is one for ComfyUI too. The last word counts."""
    for kind, data in reversed(status.get("messages") or ()):
        if kind == "execution_error":
            return _node_failure(data)
        if kind == "execution_interrupted":
            return InterruptedJobError(f"the run was interrupted at node {data['node_id']} ({data['node_type']})")
    return NodeFailedError("the engine reports a failure without a reason")


def _node_failure(error: Mapping[str, Any]) -> JobFailedError:
    node_id, class_type = str(error.get("node_id")), str(error.get("node_type"))
    kind, text = str(error.get("exception_type")), str(error.get("exception_message"))
    details = {"node_id": node_id, "class_type": class_type, "exception_type": kind}
    message = f"node {node_id} ({class_type}) failed: {kind}: {one_line(text)}"
    if missing := _MODEL_NOT_FOUND.search(text):
        name = f"{missing['folder']}/{missing['filename']}"
        return ModelMissingError(f"node {node_id} ({class_type}): model {name} was not found", details=details)
    if _is_out_of_memory(kind, text):
        return OutOfMemoryError(message, details=details)
    return NodeFailedError(message, details=details)


def _is_out_of_memory(kind: str, text: str) -> bool:
    """By type; older torch raises a RuntimeError that only says so."""
    typed = kind.rpartition(".")[2] in _OUT_OF_MEMORY_TYPES
    return typed or any(words in text.lower() for words in _OUT_OF_MEMORY_WORDS)


def to_refusal(answer: object) -> InvalidWorkflowError:
    """The error for a workflow that ComfyUI refused, or took only in part.

    Args:
        answer: ComfyUI's JSON: `{"error": {...}, "node_errors": {...}}`, or the 200 with non-empty `node_errors`.
    """
    document = answer if isinstance(answer, dict) else {}
    error = document.get("error")
    if isinstance(error, dict) and error.get("type") == "prompt_no_outputs":
        return InvalidWorkflowError(NO_OUTPUT)
    node_errors = _without_traces(document.get("node_errors"))
    try:
        lines = [line for node_id, node in (node_errors or {}).items() for line in _node_lines(node_id, node)]
    except (AttributeError, TypeError):
        node_errors, lines = {}, []
    message = "; ".join(lines) or _describe(error)
    return InvalidWorkflowError(
        f"the engine refuses the workflow: {message}", details={"node_errors": node_errors or {}}
    )


def _node_lines(node_id: str, node: Mapping[str, Any]) -> Iterator[str]:
    for error in node.get("errors") or ():
        name = (error.get("extra_info") or {}).get("input_name")
        where = f"node {node_id} ({node.get('class_type')})" + (f", input {name}" if name else "")
        yield f"{where}: {_describe(error)}"


def _describe(error: object) -> str:
    """A validation error of a node or of the whole, in one line."""
    if not isinstance(error, dict):
        return one_line(str(error or "it does not say why"))
    return one_line(": ".join(str(error[key]) for key in ("type", "message", "details") if error.get(key)))


def _without_traces(value: Any) -> Any:  # noqa: ANN401  (any JSON)
    if isinstance(value, dict):
        return {key: _without_traces(item) for key, item in value.items() if key != "traceback"}
    return [_without_traces(item) for item in value] if isinstance(value, list) else value


def one_line(text: str) -> str:
    """The first line that says something, cut at 300 characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"

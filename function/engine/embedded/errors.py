"""Errors of the embedded core."""

from __future__ import annotations


class ReportedError(Exception):
    """A node failed as a node of ComfyUI fails: reported under the type name that clients of ComfyUI know.

    Args:
        type_name: What `exception_type` says, for example `RuntimeError` or `Exception`.
        message: What `exception_message` says.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(message)
        self.type_name = type_name


class InterruptedRunError(Exception):
    """Somebody interrupted the running prompt."""


class MalformedPromptError(Exception):
    """A body whose shape ComfyUI does not check either: it answers 500 with a fixed text."""


def type_name_of(error: BaseException) -> str:
    """The type of an error as ComfyUI writes it: without `builtins`, otherwise with its module."""
    if isinstance(error, ReportedError):
        return error.type_name
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"

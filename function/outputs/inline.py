"""Outputs for a caller who gets the bytes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from function.outputs.files import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from function.engine.results import EngineFile
    from function.job import Output
    from function.outputs.files import OutputFolder


class InlineOutputs:
    """The outputs of a job that stores nothing: read once the run has ended.

    Args:
        folder: Where the files lie.
        keep: Whether the caller gets the bytes; otherwise they are only described.
    """

    def __init__(self, folder: OutputFolder, *, keep: bool = True) -> None:
        self._folder = folder
        self._keep = keep

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def begin(self, files: Sequence[EngineFile]) -> None:
        """Nothing: the bytes are wanted only if the whole run succeeds."""

    def finish(self, files: Sequence[EngineFile]) -> tuple[Output, ...]:
        """Every output with its bytes.

        Raises:
            InputRefusedError: A file lies outside OUTPUT_DIR.
            NodeFailedError: A file can't be read.
            EngineUnavailableError: A file is read through the engine, which does not answer.
        """
        return tuple(self._read(name, file) for name, file in self._folder.outputs(files))

    def _read(self, name: str, file: EngineFile) -> Output:
        with closing(self._folder.open(file)) as source:
            data = source.read() if self._keep else None
        return replace(describe(name, file, size_bytes=source.size_bytes if data is None else len(data)), data=data)

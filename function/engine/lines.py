"""What the engine writes, as log records: level, text, tracebacks in one piece; pure.

ComfyUI 0.33 marks its lines `[INFO]`, `[WARNING]`, `[ERROR]`, in colours; 0.3.x marks nothing, and custom nodes print
what they like. There the level is guessed from how warnings and errors commonly begin.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LINE_BYTES = 2_000
"""A longer line is logged in pieces."""

_BLOCK_LINES = 200  # of a traceback that does not end, for example one of endless recursion
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_MARK = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\]\s*")
_ERROR = re.compile(r"(?:ERROR|CRITICAL|FATAL|Error|!!! Exception|Traceback \()")
_WARNING = re.compile(r"WARN(?:ING)?\b|Warning\b|.{0,300}\b\w*Warning: ")
_TRACEBACK = "Traceback (most recent call last):"
_NO_MARK = logging.NOTSET


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record: a level of `logging` and its text, of several lines if it is a traceback."""

    level: int
    text: str


def parse_lines(pieces: Iterable[bytes]) -> Iterator[LogLine]:
    """Read an engine's output, line by line as it comes; a traceback is kept back until its last line."""
    block: list[str] = []
    for piece in pieces:
        level, text = _split_mark(_visible(piece))
        if block:
            block.append(text)
            # The line that names the exception ends it; indented lines and marks of groups belong to it.
            if (text and not text.startswith((" ", "|", "+"))) or len(block) >= _BLOCK_LINES:
                yield LogLine(logging.ERROR, "\n".join(block))
                block = []
        elif text.endswith(_TRACEBACK):
            block = [text]
        elif text:
            yield LogLine(level or _guessed_level(text), text)
    if block:
        yield LogLine(logging.ERROR, "\n".join(block))


def _split_mark(text: str) -> tuple[int, str]:
    mark = _MARK.match(text)
    return (logging.getLevelNamesMapping()[mark[1]], text[mark.end() :]) if mark else (_NO_MARK, text)


def _guessed_level(text: str) -> int:
    if _ERROR.match(text):
        return logging.ERROR
    return logging.WARNING if _WARNING.match(text) else logging.INFO


def _visible(piece: bytes) -> str:
    r"""What a terminal would show of a line: no colours, and a progress bar rewrites itself after each `\r`."""
    text = _ANSI.sub("", piece.decode("utf-8", "replace")).rstrip().rpartition("\r")[2]
    return "".join(character if character.isprintable() else " " for character in text).rstrip()

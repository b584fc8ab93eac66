"""Lines that an engine writes, as log records."""

from __future__ import annotations

import io
from logging import DEBUG, ERROR, INFO, WARNING

import pytest

from function.engine.lines import LogLine, parse_lines

TRACEBACK = b"""Traceback (most recent call last):
  File "execution.py", line 496, in execute
    output = run()

  File "nodes.py", line 12, in run
    raise ValueError("no")
ValueError: no
"""


def records(output: bytes) -> list[LogLine]:
    """The records of a whole output."""
    return list(parse_lines(io.BytesIO(output)))


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (b"[INFO] got prompt", INFO, "got prompt"),
        (b"\x1b[32m[INFO]\x1b[0m got prompt", INFO, "got prompt"),
        (b"\x1b[1;33m[WARNING]\x1b[0m low VRAM", WARNING, "low VRAM"),
        (b"\x1b[31m[ERROR] no\x1b[0m", ERROR, "no"),
        (b"[DEBUG] x", DEBUG, "x"),
        (b"[INFO] ERROR rate is 0", INFO, "ERROR rate is 0"),
    ],
)
def test_a_mark_gives_the_level(line: bytes, level: int, text: str) -> None:
    """The mark of 0.33 is taken off, colours too, and counts more than any guess."""
    assert records(line) == [LogLine(level, text)]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"got prompt", INFO),
        (b"Prompt executed in 0.30 seconds", INFO),
        (b"!!! Exception during processing !!! no", ERROR),
        (b"ERROR lora key not loaded: x", ERROR),
        (b"Error handling request", ERROR),
        (b"WARNING: You need pytorch with cu130", WARNING),
        (b"Warning: torch.load doesn't support weights_only", WARNING),
        (b"/usr/lib/x.py:12: UserWarning: old", WARNING),
        (b"Warnings are off", INFO),
        (b"loaded without errors", INFO),
    ],
)
def test_without_a_mark_the_level_is_guessed(line: bytes, level: int) -> None:
    """Lines of 0.3.x and of custom nodes."""
    assert records(line) == [LogLine(level, line.decode())]


@pytest.mark.parametrize("mark", [b"", b"\x1b[31m[ERROR]\x1b[0m "])
def test_a_traceback_is_one_error(mark: bytes) -> None:
    """From its head to the line that names the exception; what follows is a record of its own."""
    found = records(mark + TRACEBACK + b"Prompt executed in 0.01 seconds\n")
    assert [record.level for record in found] == [ERROR, INFO]
    assert found[0].text == TRACEBACK.decode().rstrip()


def test_two_tracebacks_are_two_errors() -> None:
    """An exception that was raised while another one was handled."""
    middle = b"\nDuring handling of the above exception, another exception occurred:\n\n"
    assert [record.level for record in records(TRACEBACK + middle + TRACEBACK)] == [ERROR, INFO, ERROR]


def test_a_cut_off_traceback_is_not_lost() -> None:
    """An engine that dies in the middle of one."""
    assert records(TRACEBACK[:90])[0].text.startswith("Traceback")


def test_a_traceback_without_end_comes_in_pieces() -> None:
    """Nothing is kept back for ever."""
    assert len(records(b"Traceback (most recent call last):\n" + b"  x\n" * 1000)) > 4


def test_a_progress_bar_is_its_last_state_and_control_characters_are_blank() -> None:
    """What a terminal would show."""
    assert records(b"10%\r50%\r100%\na\x00b\x1b]0;title\x07c\n\n") == [LogLine(INFO, "100%"), LogLine(INFO, "a bc")]

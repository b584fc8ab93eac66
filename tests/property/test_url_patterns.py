"""Patterns of URLs mean what the regular expression that they stand for means."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from function.url_patterns import matches

WILDCARDS = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


def to_regex(pieces: list[str]) -> str:
    """The regular expression, whose time may be endless for a pattern from outside."""
    return "".join(WILDCARDS.get(piece, re.escape(piece)) for piece in pieces)


@given(
    pieces=st.lists(st.sampled_from(["a", "b", "/", ".", "*", "**", "?"]), max_size=8),
    text=st.text(alphabet="ab/.", max_size=12),
)
def test_a_pattern_matches_what_its_regular_expression_matches(pieces: list[str], text: str) -> None:
    """Stars that stand side by side are one of the wider kind."""
    pattern = "".join(pieces)
    split = re.findall(r"\*\*+|.", pattern)
    regex = to_regex(["**" if piece.startswith("**") else piece for piece in split])
    assert matches(pattern, text) == (re.fullmatch(regex, text, re.DOTALL) is not None)

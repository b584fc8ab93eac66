"""comfyui-api's patterns of URLs, matched in one pass whatever the pattern: they come from outside. Pure.

`*` is any text without a slash, `**` any text, `?` one character that is no slash; a pattern describes the whole URL.
"""

from __future__ import annotations

import re

_PIECE = re.compile(r"\*\*+|.", re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern describes the whole text.

    All beginnings of the pattern that fit what was read are followed at a time, as bits of one number: bit n stands for
    the first n characters to match. A regular expression could be made to try for ever.
    """
    anywhere, within, exact, wild, length = _compile(pattern)
    state = 1
    for character in text:
        slash = character == "/"
        fits = exact.get(character, 0) | (0 if slash else wild)
        state = (state & fits) << 1 | state & (anywhere if slash else anywhere | within)
        if not state:
            return False
    return bool(state >> length & 1)


def _compile(pattern: str) -> tuple[int, int, dict[str, int], int, int]:
    """Bits where `**` and `*` stand, those of each character and of `?`, and how many characters there are to match."""
    anywhere = within = wild = length = 0
    exact: dict[str, int] = {}
    for piece in _PIECE.findall(pattern):
        bit = 1 << length
        if piece.startswith("**"):
            anywhere |= bit
        elif piece == "*":
            within |= bit
        elif piece == "?":
            wild, length = wild | bit, length + 1
        else:
            exact[piece] = exact.get(piece, 0) | bit
            length += 1
    return anywhere, within, exact, wild, length

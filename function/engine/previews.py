"""Pictures of a run that goes on: asked of ComfyUI for one run, read from its socket, thinned out.

ComfyUI sends them as binary frames (`protocol.py`, `server.py` of 0.3.64 and 0.33.0): a big-endian number for the kind
of frame, then, for a picture, one for its format and the file; or, for clients that said so in their first message, the
length of a JSON document with the node and the format, the document, and the file.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    OnPreview: TypeAlias = Callable[["Preview"], None]

HELLO = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
"""What has to be a client's first message if its previews are to name their node."""

EXTRA_DATA = {"preview_method": "auto"}
"""What asks for previews with a prompt; 0.3.64 doesn't know it and sends them only under `--preview-method` in CMD."""

_INTERVAL_SECONDS = 0.1
_PLAIN, _WITH_METADATA = 1, 4
_FORMATS = {1: "image/jpeg", 2: "image/png"}
_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Preview:
    """One picture of a run that goes on.

    Attributes:
        node_id: The node of the workflow that works on it; "" where the engine doesn't say.
        media_type: `image/jpeg` or `image/png`.
        data: The file.
    """

    node_id: str
    media_type: str
    data: bytes


def parse_preview(frame: bytes, *, prompt_id: str) -> Preview | None:
    """Read a binary frame of ComfyUI's socket; None for what is no preview of this run."""
    kind, number, rest = _word(frame, 0), _word(frame, _WORD_BYTES), frame[2 * _WORD_BYTES :]
    if kind == _PLAIN and number in _FORMATS:
        return Preview("", _FORMATS[number], rest)
    if kind == _WITH_METADATA:
        return _described(rest[:number], rest[number:], prompt_id)
    return None


def _word(frame: bytes, start: int) -> int:
    return int.from_bytes(frame[start : start + _WORD_BYTES], "big")


def _described(metadata: bytes, data: bytes, prompt_id: str) -> Preview | None:
    try:
        facts: Any = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or facts.get("prompt_id") != prompt_id:
        return None
    node_id, media_type = facts.get("display_node_id") or facts.get("node_id"), str(facts.get("image_type"))
    return Preview(str(node_id or ""), media_type, data) if media_type in _FORMATS.values() else None


class LatestPreview:
    """Hands on the latest preview, ten a second at most; one that is overtaken is dropped.

    Args:
        on_preview: Told of each one that is handed on.
        clock: Monotonic seconds.
    """

    def __init__(self, on_preview: OnPreview, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_preview = on_preview
        self._clock = clock
        self._latest: Preview | None = None
        self._next_at = 0.0

    def put(self, preview: Preview) -> None:
        """Take the place of the one before."""
        self._latest = preview

    def hand_on(self, *, at_once: bool = False) -> None:
        """Hand on the latest one if there is one and its time has come."""
        if self._latest is None or not (at_once or self._clock() >= self._next_at):
            return
        latest, self._latest = self._latest, None
        self._next_at = self._clock() + _INTERVAL_SECONDS
        self._on_preview(latest)

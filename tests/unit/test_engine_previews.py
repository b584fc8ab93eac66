"""Binary frames of the engine's socket."""

from __future__ import annotations

import json

import pytest

from function.engine.previews import LatestPreview, Preview, parse_preview
from tests.support.engine import recorded

RECORDED_META = [
    message["msg"]["data"]
    for message in recorded("run_preview_meta")["messages"]
    if message["msg"]["type"] == "<binary>"
]


def frame(kind: int, number: int, content: bytes) -> bytes:
    """One binary frame."""
    return kind.to_bytes(4, "big") + number.to_bytes(4, "big") + content


def described(data: bytes = b"jpeg", **changes: object) -> bytes:
    """A preview with metadata."""
    facts = {"node_id": "4.0.1", "prompt_id": "p", "display_node_id": "4", "image_type": "image/jpeg"} | changes
    metadata = json.dumps(facts).encode()
    return frame(4, len(metadata), metadata + data)


def test_a_plain_preview() -> None:
    """It has a format and no node."""
    assert parse_preview(frame(1, 1, b"jpeg"), prompt_id="p") == Preview("", "image/jpeg", b"jpeg")
    assert parse_preview(frame(1, 2, b"png"), prompt_id="p") == Preview("", "image/png", b"png")


def test_a_preview_with_metadata() -> None:
    """It names the node that the workflow's sender knows."""
    assert parse_preview(described(), prompt_id="p") == Preview("4", "image/jpeg", b"jpeg")
    assert parse_preview(described(display_node_id=None), prompt_id="p") == Preview("4.0.1", "image/jpeg", b"jpeg")


@pytest.mark.parametrize(
    "other",
    [
        *(b"", b"\0\0\0\1", frame(1, 3, b"x"), frame(2, 1, b"x"), frame(3, 1, b"4text")),
        *(frame(4, 2**31, b"{}"), frame(4, 2, b"[]"), frame(4, 1, b"{"), described(prompt_id="other")),
        described(image_type="text/html"),
    ],
)
def test_other_frames_are_no_previews(other: bytes) -> None:
    """Cut off, of another kind or format, text, or of another run."""
    assert parse_preview(other, prompt_id="p") is None


def test_the_recorded_head_of_a_frame() -> None:
    """The frames of a real core begin as these do."""
    head = bytes.fromhex(RECORDED_META[0]["head_hex"])
    assert (head[:8], head[8:].startswith(b'{"node_id": "4", "prompt_id": ')) == (frame(4, 166, b""), True)


def test_only_the_latest_is_handed_on() -> None:
    """Ten a second at most; what is overtaken is dropped, the last one comes at the end."""
    now, seen = [0.0], []
    latest = LatestPreview(lambda preview: seen.append(preview.data), clock=lambda: now[0])
    for number, moment in enumerate([10.0, 10.01, 10.05, 10.11, 10.12]):
        now[0] = moment
        latest.put(Preview("1", "image/png", b"%d" % number))
        latest.hand_on()
    assert seen == [b"0", b"3"]
    latest.hand_on(at_once=True)
    latest.hand_on(at_once=True)
    assert seen == [b"0", b"3", b"4"]

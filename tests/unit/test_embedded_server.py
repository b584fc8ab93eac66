"""Small parts of the embedded core's server: multipart bodies, the origin rule, the machine's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from function.engine.embedded.multipart import Part, parse_multipart
from function.engine.embedded.server import is_foreign
from function.engine.embedded.system import memory

if TYPE_CHECKING:
    from pathlib import Path

FORM = 'multipart/form-data; boundary="b"'


def test_parts_keep_their_bytes() -> None:
    """Line ends and dashes inside a file stay as they are."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a b.png"\r\nContent-Type: image/png\r\n\r\n'
        b"\r\n--\r\n\0\r\n--b\r\n"
        b'Content-Disposition: form-data; name="type"\r\n\r\ntemp\r\n--b--\r\n'
    )
    assert parse_multipart(FORM, body) == {
        "image": Part("image", b"\r\n--\r\n\0", "a b.png"),
        "type": Part("type", b"temp"),
    }


@pytest.mark.parametrize("content_type", ["", "multipart/form-data", "text/plain; boundary=b"])
def test_no_form(content_type: str) -> None:
    """Without the form's type and boundary the body is refused."""
    with pytest.raises(ValueError, match="multipart"):
        parse_multipart(content_type, b"")


@pytest.mark.parametrize(
    ("host", "origin", "foreign"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188", False),
        ("localhost:8188", "http://localhost:8188", False),
        ("localhost:8188", "http://localhost", False),
        ("127.0.0.1:8188", "http://127.0.0.1:9999", True),
        ("127.0.0.1:8188", "https://evil.example", True),
        ("[::1]:8188", "http://evil.example", True),
        ("127.0.0.1:8188", "null", True),
        ("127.0.0.1:8188", "http://x:port", True),
        ("comfy.example", "https://evil.example", False),
    ],
)
def test_origin(host: str, origin: str, *, foreign: bool) -> None:
    """On loopback the origin has to be the host; elsewhere ComfyUI leaves that to a proxy."""
    assert is_foreign({b"host": host.encode(), b"origin": origin.encode()}) is foreign


def test_no_origin() -> None:
    """A program sends no origin and is let in."""
    assert not is_foreign({b"host": b"127.0.0.1:8188"})


def test_memory(tmp_path: Path) -> None:
    """Total and available memory in bytes; zeros where the system doesn't tell."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2 kB\nMemFree: 0 kB\nMemAvailable: 1 kB\n")
    assert memory(meminfo=meminfo) == (2048, 1024)
    assert memory(meminfo=tmp_path / "none") == (0, 0)

"""Output files as an engine would have written them."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from function.engine.results import EngineFile
from function.engine.views import view_file
from function.outputs.files import OutputFolder
from tests.support.engine_proxy import proxied, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engine import EmbeddedEngine

LARGE_FILE = bytes(range(256)) * 4096 * 20  # 20 MiB: more than one part of a multipart upload


def file_of_engine(name: str, subfolder: str = "", *, folder_type: str = "output") -> EngineFile:
    """A file that a node reports."""
    return EngineFile(node_id="9", kind="images", filename=name, subfolder=subfolder, folder_type=folder_type)


@pytest.fixture
def served(shared_engine: EmbeddedEngine, tmp_path: Path) -> Iterator[OutputFolder]:
    """An empty OUTPUT_DIR beside a running engine that has written elsewhere; it breaks off `broken.bin`."""
    directories = shared_engine.directories
    for path in (directories.output / "j1/a.png", directories.output / "j1/sub/a.png", directories.temp / "p.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small_image())
    (directories.output / "j1" / "large.bin").write_bytes(LARGE_FILE)
    with proxied(shared_engine.port) as proxy:
        proxy.faults["GET /view?filename=broken.bin"] = say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        yield OutputFolder(tmp_path / "elsewhere", "j1", view=partial(view_file, "127.0.0.1", proxy.port))


def written(
    output_dir: Path,
    name: str,
    subfolder: str = "j1",
    *,
    node_id: str = "9",
    content: bytes = b"",
    folder_type: str = "output",
) -> EngineFile:
    """Write a file, a small image unless its content is given, and report it as a node does."""
    path = output_dir / subfolder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or small_image())
    return EngineFile(node_id=node_id, kind="images", filename=name, subfolder=subfolder, folder_type=folder_type)


def small_image() -> bytes:
    """A PNG of 3 by 2 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    return buffer.getvalue()

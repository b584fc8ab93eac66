"""Output files as an engine would have written them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from function.engine.results import EngineFile

if TYPE_CHECKING:
    from pathlib import Path


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

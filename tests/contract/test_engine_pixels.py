"""Pixels: the shared cases give the images that ComfyUI gave, within 1 of 255 per channel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.support.engine import DATA, RECORDED_VERSION, EmbeddedEngine, case, engine_version

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPECTED = json.loads((DATA / "cases" / "expected.json").read_text())["cases"]
NODES = json.loads((DATA.parent / "embedded" / "nodes.json").read_text())

CHANGED_SINCE = {
    "load_alpha": "newer cores give an image without alpha an empty mask of 64x64 pixels",
    "feather_mask": "newer cores fade out from the last row and column on, not from the last but one",
    "feather_mask_wide": "newer cores fade out from the last row and column on, not from the last but one",
}
"""Nodes that other versions than the recorded one compute otherwise."""


def difference(image: Image.Image, reference: Image.Image) -> int:
    """The largest difference of one channel of one pixel."""
    assert image.size == reference.size

    def channels(picture: Image.Image) -> NDArray[np.int_]:
        return np.asarray(picture.convert("RGBA")).astype(np.int_)

    return int(np.abs(channels(image) - channels(reference)).max())


@pytest.mark.parametrize("name", EXPECTED)
def test_shared_case(engine: EmbeddedEngine, name: str) -> None:
    """The case's saved image is the reference image."""
    expected = EXPECTED[name]
    (item,) = engine.run(case(name)).images(expected["node"])
    assert item["subfolder"] == expected["subfolder"]
    with Image.open(DATA / "cases" / expected["ref"]) as reference:
        assert difference(engine.image(item), reference) <= 1


@pytest.mark.parametrize("name", NODES)
def test_node(engine: EmbeddedEngine, name: str) -> None:
    """A node's image is the one that the same small graph gave in ComfyUI 0.3.64."""
    if name in CHANGED_SINCE and engine_version() != RECORDED_VERSION:
        pytest.skip(f"{name}: {CHANGED_SINCE[name]}")
    run = engine.run(NODES[name])
    (output,) = run.history["outputs"]
    for index, item in enumerate(run.images(output)):
        with Image.open(DATA.parent / "embedded" / f"{name}-{index}.png") as reference:
            assert difference(engine.image(item), reference) <= 1

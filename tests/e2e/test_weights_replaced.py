"""Weights that are replaced under their name, again and again, through the whole function."""

from __future__ import annotations

import base64
import io
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.support.engine import DATA, case

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory

NAME = "tiny_srvgg_x2.safetensors"
REPLACEMENTS = 100
LAST_LAYER_BIAS = "body.4.bias"


def test_each_of_100_replacements_gives_its_own_pixels_in_the_very_next_job(
    function_factory: FunctionFactory, model_files: Path, tmp_path: Path
) -> None:
    """The weights of each add a brightness of their own to the enlarged image, so their pixels tell which ran."""
    function = function_factory(MODEL_REVALIDATE_SECONDS="0")
    function.put_upload("in_64x48.png")
    weights = load_file(model_files / "upscale_models" / NAME)
    expected = enlarged()
    target = function.store / "models" / "upscale_models" / NAME
    target.parent.mkdir(parents=True)
    for brightness in range(1, REPLACEMENTS + 1):
        adding = {name: np.zeros_like(tensor) for name, tensor in weights.items()}
        adding[LAST_LAYER_BIAS] += (brightness + 0.5) / 255  # pixels are cut down to whole numbers
        save_file(adding, tmp_path / NAME)
        shutil.copyfile(tmp_path / NAME, target.with_suffix(".part"))
        os.replace(target.with_suffix(".part"), target)  # noqa: PTH105
        answer = function.post("/prompt", {"prompt": case("10_upscale_srvgg")})
        assert answer.status == 200, answer.body
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json["images"][0]))), np.int16)
        assert np.array_equal(pixels, np.minimum(expected + brightness, 255)), f"replacement {brightness}"


def enlarged() -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """The input at twice its size, as the network adds it to what it computes."""
    image = Image.open(DATA / "cases" / "in_64x48.png").convert("RGB")
    return np.asarray(image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST), np.int16)

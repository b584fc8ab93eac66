"""Upscaling in tiles, as ComfyUI does it: 512 pixels wide, 32 of overlap, faded into each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from function.engine.embedded.networks.upscalers import Upscaler

    Floats: TypeAlias = NDArray[np.float32]

TILE = 512
OVERLAP = 32


def tile_count(height: int, width: int, *, tile: int = TILE, overlap: int = OVERLAP) -> int:
    """How many tiles an image of this size is cut into."""
    return math.prod(len(_starts(side, tile, overlap)) for side in (height, width))


def upscale_tiled(
    image: Floats, upscaler: Upscaler, after_tile: Callable[[], None], *, tile: int = TILE, overlap: int = OVERLAP
) -> Floats:
    """Upscale one image (channels, height, width); `after_tile` is called after each tile and may raise to stop."""
    _, height, width = image.shape
    if height <= tile and width <= tile:
        result = upscaler.run(image)
        after_tile()
        return result
    total = np.zeros((3, height * upscaler.scale, width * upscaler.scale), np.float32)
    weights = np.zeros((1, *total.shape[1:]), np.float32)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = upscaler.run(image[:, top : top + tile, left : left + tile])
            mask = _mask(part.shape[1], part.shape[2], round(overlap * upscaler.scale))
            place = np.s_[:, _span(top, part.shape[1], upscaler.scale), _span(left, part.shape[2], upscaler.scale)]
            total[place] += part * mask
            weights[place] += mask
            after_tile()
    return np.asarray(total / weights, np.float32)


def _starts(size: int, tile: int, overlap: int) -> range | tuple[int]:
    return range(0, size - overlap, tile - overlap) if size > tile else (0,)


def _span(start: int, length: int, scale: int) -> slice:
    return slice(start * scale, start * scale + length)


def _mask(height: int, width: int, feather: int) -> Floats:
    return _ramp(height, feather)[None, :, None] * _ramp(width, feather)[None, None]


def _ramp(size: int, feather: int) -> Floats:
    """Weights along one side: rising over the overlap at one end and falling at the other."""
    ramp = np.ones(size, np.float32)
    if feather < size:
        rising = np.arange(1, feather + 1, dtype=np.float32) / np.float32(feather)
        ramp[:feather] *= rising
        ramp[size - feather :] *= rising[::-1]
    return ramp

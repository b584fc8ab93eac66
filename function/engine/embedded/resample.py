"""Scaling images as ComfyUI scales them: torch's `interpolate` (no antialiasing, half-pixel centres) and Pillow.

Every separable method is a handful of weighted taps per output pixel, so one gather-and-add serves them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image as PillowImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    Taps: TypeAlias = tuple[NDArray[np.intp], Floats]

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
_CUBIC = -0.75  # torch's coefficient of the cubic convolution kernel


def scale(images: Floats, width: int, height: int, method: str, crop: str = "disabled") -> Floats:
    """Images (batch, height, width, channels) at another size; `crop="center"` first cuts them to the new aspect."""
    if crop == "center":
        images = _centre(images, width, height)
    if method == "lanczos":
        return np.stack([_lanczos(image, width, height) for image in images])
    return _along(_along(images, 2, width, _TAPS[method]), 1, height, _TAPS[method])


def _centre(images: Floats, width: int, height: int) -> Floats:
    old_height, old_width = images.shape[1:3]
    old_aspect, aspect = old_width / old_height, width / height
    x = round((old_width - old_width * (aspect / old_aspect)) / 2) if old_aspect > aspect else 0
    y = round((old_height - old_height * (old_aspect / aspect)) / 2) if old_aspect < aspect else 0
    return images[:, y : old_height - y, x : old_width - x]


def _along(images: Floats, axis: int, size: int, taps: Callable[[int, int], Taps]) -> Floats:
    """Resample one axis to `size`: the sum over taps of weight times the pixels the tap points at."""
    if images.shape[axis] == size:
        return images
    indices, weights = taps(images.shape[axis], size)
    shape = [1] * images.ndim
    shape[axis] = size
    result: Floats = np.take(images, indices[0], axis=axis) * weights[0].reshape(shape)
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        result += np.take(images, index, axis=axis) * weight.reshape(shape)
    return result


def _centres(old: int, new: int) -> Floats:
    scale_factor = np.float32(old / new)
    return (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale_factor


def _nearest(old: int, new: int) -> Taps:
    index = np.minimum(np.floor(_centres(old, new)).astype(np.intp), old - 1)
    return index[None], np.ones((1, new), np.float32)


def _bilinear(old: int, new: int) -> Taps:
    source = np.maximum(_centres(old, new) - np.float32(0.5), np.float32(0))
    low = np.minimum(source.astype(np.intp), old - 1)
    share = (source - low.astype(np.float32)).astype(np.float32)
    return np.stack([low, np.minimum(low + 1, old - 1)]), np.stack([1 - share, share])


def _bicubic(old: int, new: int) -> Taps:
    source = _centres(old, new) - np.float32(0.5)
    low = np.floor(source)
    share = source - low
    indices = [np.clip(low.astype(np.intp) + shift, 0, old - 1) for shift in (-1, 0, 1, 2)]
    weights = [_outer(share + 1), _inner(share), _inner(1 - share), _outer(2 - share)]
    return np.stack(indices), np.stack(weights).astype(np.float32)


def _inner(x: Floats) -> Floats:
    return np.asarray(((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1, np.float32)


def _outer(x: Floats) -> Floats:
    return np.asarray(((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC, np.float32)


def _area(old: int, new: int) -> Taps:
    """The mean over the pixels that an output pixel covers, as torch's adaptive average pooling counts them."""
    start = np.arange(new) * old // new
    count = -(-(np.arange(new) + 1) * old // new) - start
    steps = np.arange(count.max())[:, None]
    weights = np.where(steps < count, np.float32(1) / count, 0).astype(np.float32)
    return np.minimum(start + steps, old - 1), weights


def _lanczos(image: Floats, width: int, height: int) -> Floats:
    resized = PillowImage.fromarray(to_bytes(image)).resize((width, height), PillowImage.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / np.float32(255)


def to_bytes(image: Floats) -> NDArray[np.uint8]:
    """Pixels as 8 bit: cut off, not rounded, as ComfyUI saves them."""
    pixels: NDArray[np.uint8] = np.clip(image * np.float32(255), 0, 255).astype(np.uint8)
    return pixels


_TAPS: dict[str, Callable[[int, int], Taps]] = {
    "nearest-exact": _nearest,
    "bilinear": _bilinear,
    "area": _area,
    "bicubic": _bicubic,
}

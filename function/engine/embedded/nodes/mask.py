"""Nodes about masks: arrays (batch, height, width) of float32 in 0..1."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded import resample
from function.engine.embedded.nodes.image import with_channels_of
from function.engine.embedded.nodes.node import MAX_SIDE, Input, Node, combo, integer, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

_IMAGE = Input("IMAGE")
_MASK = Input("MASK")
_PLACE = integer(0, 0, MAX_SIDE)
_SIDE = integer(512, 1, MAX_SIDE)
_COLOURS = ("red", "green", "blue", "alpha")


def _to_image(mask: Floats) -> tuple[Floats]:
    flat = mask.reshape(-1, *mask.shape[-2:])
    return (np.repeat(flat[..., None], 3, axis=-1),)


def _from_image(image: Floats, channel: str) -> tuple[Floats]:
    return (image[..., _COLOURS.index(channel)],)


def _invert(mask: Floats) -> tuple[Floats]:
    return (np.float32(1) - mask,)


def _solid(value: float, width: int, height: int) -> tuple[Floats]:
    return (np.full((1, height, width), value, np.float32),)


def _crop(mask: Floats, x: int, y: int, width: int, height: int) -> tuple[Floats]:
    return (mask.reshape(-1, *mask.shape[-2:])[:, y : y + height, x : x + width],)


def _threshold(mask: Floats, value: float) -> tuple[Floats]:
    return ((mask > value).astype(np.float32),)


def _composite(
    destination: Floats, source: Floats, x: int, y: int, *, resize_source: bool, mask: Floats | None = None
) -> tuple[Floats]:
    """Paste `source` over `destination` at (x, y) where the mask lets it through."""
    result = destination.copy()
    source = with_channels_of(destination, source)
    if resize_source:
        source = resample.scale(source, destination.shape[2], destination.shape[1], "bilinear")
    source = _repeated(source, len(destination))
    cover = _cover(source, mask)
    target = result[:, y : y + source.shape[1], x : x + source.shape[2]]
    height, width = target.shape[1:3]
    cover = cover[:, :height, :width]
    target[:] = cover * source[:, :height, :width] + (1 - cover) * target
    return (result,)


def _cover(source: Floats, mask: Floats | None) -> Floats:
    if mask is None:
        return np.ones((*source.shape[:3], 1), np.float32)
    flat = mask.reshape(-1, *mask.shape[-2:])[..., None]
    return _repeated(resample.scale(flat, source.shape[2], source.shape[1], "bilinear"), len(source))


def _repeated(images: Floats, count: int) -> Floats:
    """A batch of `count`: the first ones, or the batch over and over."""
    return np.tile(images, (-(-count // len(images)), 1, 1, 1))[:count]


_MODULE = "comfy_extras.nodes_mask"

NODES = (
    Node(
        "MaskToImage",
        _to_image,
        {"mask": _MASK},
        ("IMAGE",),
        display_name="Convert Mask to Image",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "ImageToMask",
        _from_image,
        {"image": _IMAGE, "channel": combo(*_COLOURS)},
        ("MASK",),
        display_name="Convert Image to Mask",
        category="mask",
        module=_MODULE,
    ),
    Node("InvertMask", _invert, {"mask": _MASK}, ("MASK",), display_name="InvertMask", category="mask", module=_MODULE),
    Node(
        "SolidMask",
        _solid,
        {"value": number(1.0, 0.0, 1.0, 0.01), "width": _SIDE, "height": _SIDE},
        ("MASK",),
        display_name="SolidMask",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "CropMask",
        _crop,
        {"mask": _MASK, "x": _PLACE, "y": _PLACE, "width": _SIDE, "height": _SIDE},
        ("MASK",),
        display_name="CropMask",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "ThresholdMask",
        _threshold,
        {"mask": _MASK, "value": number(0.5, 0.0, 1.0, 0.01)},
        ("MASK",),
        display_name="ThresholdMask",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "ImageCompositeMasked",
        _composite,
        {
            "destination": _IMAGE,
            "source": _IMAGE,
            "x": _PLACE,
            "y": _PLACE,
            "resize_source": Input("BOOLEAN", {"default": False}),
        },
        ("IMAGE",),
        optional={"mask": _MASK},
        display_name="ImageCompositeMasked",
        module=_MODULE,
    ),
)

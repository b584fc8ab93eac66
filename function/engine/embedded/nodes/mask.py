"""Nodes about masks: arrays (batch, height, width) of float32 in 0..1."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded import resample
from function.engine.embedded.nodes.image import with_channels_of
from function.engine.embedded.nodes.node import MAX_SIDE, Input, Node, combo, integer, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

_IMAGE = Input("IMAGE")
_MASK = Input("MASK")
_PLACE = integer(0, 0, MAX_SIDE)
_SIDE = integer(512, 1, MAX_SIDE)
_COLOURS = ("red", "green", "blue", "alpha")


def _flat(mask: Floats) -> Floats:
    """A mask of any rank as a batch."""
    return mask.reshape(-1, *mask.shape[-2:])


def as_image(mask: Floats) -> Floats:
    """A mask in shades of grey."""
    return np.repeat(_flat(mask)[..., None], 3, axis=-1)


def _to_image(mask: Floats) -> tuple[Floats]:
    return (as_image(mask),)


def _from_image(image: Floats, channel: str) -> tuple[Floats]:
    return (image[..., _COLOURS.index(channel)],)


def _invert(mask: Floats) -> tuple[Floats]:
    return (np.float32(1) - mask,)


def _solid(value: float, width: int, height: int) -> tuple[Floats]:
    return (np.full((1, height, width), value, np.float32),)


def _crop(mask: Floats, x: int, y: int, width: int, height: int) -> tuple[Floats]:
    return (_flat(mask)[:, y : y + height, x : x + width],)


def _threshold(mask: Floats, value: float) -> tuple[Floats]:
    return ((mask > value).astype(np.float32),)


def _from_color(image: Floats, color: int) -> tuple[Floats]:
    channels = np.rint(np.clip(image[..., :3], 0, 1) * 255).astype(np.int32)
    packed = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    return ((packed == color).astype(np.float32),)


def _grow(mask: Floats, expand: int, *, tapered_corners: bool) -> tuple[Floats]:
    """Spread the larger (shrinking: the smaller) value by one pixel, as often as `expand` says."""
    pick = np.maximum if expand > 0 else np.minimum
    grown = _flat(mask)
    for _ in range(min(abs(expand), sum(grown.shape[1:]))):  # by then every pixel has reached every other
        grown = _spread(grown, pick, corners=not tapered_corners)
    return (grown,)


def _spread(mask: Floats, pick: Callable[[Floats, Floats], Floats], *, corners: bool) -> Floats:
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    upright = pick(pick(padded[:, :-2], padded[:, 2:]), padded[:, 1:-1])
    row = upright if corners else padded[:, 1:-1]
    return pick(pick(row[..., :-2], row[..., 2:]), upright[..., 1:-1])


def _feather(mask: Floats, left: int, top: int, right: int, bottom: int) -> tuple[Floats]:
    _, height, width = _flat(mask).shape
    return (_flat(mask) * _fading(height, top, bottom)[:, None] * _fading(width, left, right),)


def _fading(size: int, before: int, after: int) -> Floats:
    """Weights along one side. At the far end ComfyUI counts from the first pixel backwards: so that one fades twice."""
    weights = np.ones(size, np.float32)
    for length, direction in ((min(before, size), 1), (min(after, size), -1)):
        steps = np.arange(length)
        weights[steps * direction] *= ((steps + 1) / max(length, 1)).astype(np.float32)
    return weights


def _both(join: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]]) -> Callable[..., Floats]:
    """An operation on masks that are taken as yes or no."""
    return lambda a, b: join(np.rint(a).astype(bool), np.rint(b).astype(bool)).astype(np.float32)


_OPERATIONS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "multiply": lambda a, b: a * b,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "and": _both(np.logical_and),
    "or": _both(np.logical_or),
    "xor": _both(np.logical_xor),
}


def _combine(destination: Floats, source: Floats, x: int, y: int, operation: str) -> tuple[Floats]:
    result = _flat(destination).copy()
    source = _flat(source)
    target = result[:, y : y + source.shape[1], x : x + source.shape[2]]
    target[:] = _OPERATIONS[operation](target, source[:, : target.shape[1], : target.shape[2]])
    return (np.clip(result, 0, 1),)


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
    return _repeated(resample.scale(_flat(mask)[..., None], source.shape[2], source.shape[1], "bilinear"), len(source))


def _repeated(images: Floats, count: int) -> Floats:
    """A batch of `count`: the first ones, or the batch over and over."""
    return np.tile(images, (-(-count // len(images)), 1, 1, 1))[:count]


def _split(image: Floats) -> tuple[Floats, Floats]:
    """Colours, and a mask that is 1 where the image is transparent."""
    opaque = image[..., 3] if image.shape[-1] > 3 else np.ones(image.shape[:3], np.float32)  # noqa: PLR2004  (RGB)
    return image[..., :3], np.float32(1) - opaque


def _join(image: Floats, alpha: Floats) -> tuple[Floats]:
    count = min(len(image), len(_flat(alpha)))
    mask = resample.scale(_flat(alpha)[:count, ..., None], image.shape[2], image.shape[1], "bilinear")
    return (np.concatenate([image[:count, ..., :3], np.float32(1) - mask], axis=-1),)


_MODULE = "comfy_extras.nodes_mask"
_COMPOSITING = "mask/compositing"

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
        "ImageColorToMask",
        _from_color,
        {"image": _IMAGE, "color": integer(0, 0, 0xFFFFFF, display="color")},
        ("MASK",),
        display_name="ImageColorToMask",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "GrowMask",
        _grow,
        {
            "mask": _MASK,
            "expand": integer(0, -MAX_SIDE, MAX_SIDE),
            "tapered_corners": Input("BOOLEAN", {"default": True}),
        },
        ("MASK",),
        display_name="GrowMask",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "FeatherMask",
        _feather,
        {"mask": _MASK, "left": _PLACE, "top": _PLACE, "right": _PLACE, "bottom": _PLACE},
        ("MASK",),
        display_name="FeatherMask",
        category="mask",
        module=_MODULE,
    ),
    Node(
        "MaskComposite",
        _combine,
        {"destination": _MASK, "source": _MASK, "x": _PLACE, "y": _PLACE, "operation": combo(*_OPERATIONS)},
        ("MASK",),
        display_name="MaskComposite",
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
    Node(
        "SplitImageWithAlpha",
        _split,
        {"image": Input("IMAGE", {})},
        ("IMAGE", "MASK"),
        display_name="Split Image with Alpha",
        category=_COMPOSITING,
        module="comfy_extras.nodes_compositing",
        schema=True,
    ),
    Node(
        "JoinImageWithAlpha",
        _join,
        {"image": Input("IMAGE", {}), "alpha": Input("MASK", {})},
        ("IMAGE",),
        display_name="Join Image with Alpha",
        category=_COMPOSITING,
        module="comfy_extras.nodes_compositing",
        schema=True,
    ),
)

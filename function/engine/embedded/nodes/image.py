"""Nodes that make, scale, filter and arrange images: arrays (batch, height, width, channels) of float32 in 0..1."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded import resample
from function.engine.embedded.errors import ReportedError
from function.engine.embedded.nodes.node import COMBO, MAX_SIDE, Input, Node, combo, integer, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

_IMAGE = Input("IMAGE")
_METHOD = combo(*resample.METHODS)
_SIDE = integer(512, 0, MAX_SIDE)
_SIDE_FROM_ONE = integer(512, 1, MAX_SIDE)


def _empty(width: int, height: int, batch_size: int, color: int) -> tuple[Floats]:
    pixel = np.array([color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF], np.float32) / np.float32(255)
    return (np.broadcast_to(pixel, (batch_size, height, width, 3)).copy(),)


def _scale(image: Floats, upscale_method: str, width: int, height: int, crop: str) -> tuple[Floats]:
    if width == 0 and height == 0:
        return (image,)
    old_height, old_width = image.shape[1:3]
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return (resample.scale(image, width, height, upscale_method, crop),)


def _scale_by(image: Floats, upscale_method: str, scale_by: float) -> tuple[Floats]:
    height, width = (round(side * scale_by) for side in image.shape[1:3])
    return (resample.scale(image, width, height, upscale_method),)


def _invert(image: Floats) -> tuple[Floats]:
    return (np.float32(1) - image,)


def _gaussian(radius: int, sigma: float) -> Floats:
    """One axis of ComfyUI's blur kernel: its coordinates run from -1 to 1 whatever the radius."""
    x = np.linspace(-1, 1, 2 * radius + 1, dtype=np.float32)
    weights = np.exp(-(x**2) / np.float32(2 * sigma * sigma))
    return np.asarray(weights / weights.sum(), np.float32)


def _blurred(image: Floats, radius: int, sigma: float) -> Floats:
    if min(image.shape[1:3]) <= radius:
        raise ReportedError(
            "RuntimeError", "Padding size should be less than the corresponding input dimension of the image"
        )
    weights = _gaussian(radius, sigma)
    for axis in (1, 2):
        image = _convolved(image, axis, weights)
    return image


def _convolved(image: Floats, axis: int, weights: Floats) -> Floats:
    radius, size = len(weights) // 2, image.shape[axis]
    padded = np.pad(image, [(radius, radius) if each == axis else (0, 0) for each in range(4)], mode="reflect")
    result = np.zeros_like(image)
    for start, weight in enumerate(weights):
        result += weight * padded.take(range(start, start + size), axis=axis)
    return result


def _blur(image: Floats, blur_radius: int, sigma: float) -> tuple[Floats]:
    return (_blurred(image, blur_radius, sigma),)


def _sharpen(image: Floats, sharpen_radius: int, sigma: float, alpha: float) -> tuple[Floats]:
    strength = np.float32(alpha * 10)
    sharpened = image * (strength + 1) - strength * _blurred(image, sharpen_radius, sigma)
    return (np.clip(sharpened, 0, 1),)


def _soft_light(a: Floats, b: Floats) -> Floats:
    lighter = np.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, np.sqrt(a))  # noqa: PLR2004  (the W3C compositing formula)
    return np.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (lighter - a))  # noqa: PLR2004  (as above)


_BLENDS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "normal": lambda _, b: b,
    "multiply": lambda a, b: a * b,
    "screen": lambda a, b: 1 - (1 - a) * (1 - b),
    "overlay": lambda a, b: np.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b)),  # noqa: PLR2004  (as above)
    "soft_light": _soft_light,
    "difference": lambda a, b: a - b,
}


def _blend(image1: Floats, image2: Floats, blend_factor: float, blend_mode: str) -> tuple[Floats]:
    image2 = with_channels_of(image1, image2)
    if image1.shape != image2.shape:
        image2 = resample.scale(image2, image1.shape[2], image1.shape[1], "bicubic", "center")
    blended = _BLENDS[blend_mode](image1, image2)
    share = np.float32(blend_factor)
    return (np.clip(image1 * (1 - share) + blended * share, 0, 1),)


def with_channels_of(target: Floats, image: Floats) -> Floats:
    """`image` without the channels that `target` lacks.

    Raises:
        ReportedError: It lacks channels itself: ComfyUI 0.3.64 gives `target` one more instead, and fails.
    """
    channels, wanted = image.shape[-1], target.shape[-1]
    if channels < wanted:
        raise _unequal(channels, wanted + 1)
    return image[..., :wanted]


def _unequal(a: int, b: int) -> ReportedError:
    message = f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton dimension 1"
    return ReportedError("RuntimeError", message)


def _batch(image1: Floats, image2: Floats) -> tuple[Floats]:
    if image1.shape[-1] != image2.shape[-1]:
        raise _unequal(image1.shape[-1], image2.shape[-1])
    if image1.shape[1:] != image2.shape[1:]:
        image2 = resample.scale(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
    return (np.concatenate([image1, image2]),)


def _crop(image: Floats, width: int, height: int, x: int, y: int) -> tuple[Floats]:
    x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return (image[:, y : y + height, x : x + width],)


def _pad(image: Floats, left: int, top: int, right: int, bottom: int, feathering: int) -> tuple[Floats, Floats]:
    height, width = image.shape[1:3]
    borders = [(0, 0), (top, bottom), (left, right)]
    padded = np.pad(image, [*borders, (0, 0)], constant_values=0.5)
    inner = np.zeros((1, height, width), np.float32)
    if 0 < feathering * 2 < min(height, width):
        far = max(height, width)
        rows = _distance(height, top, bottom, far)[:, None]
        columns = _distance(width, left, right, far)[None]
        inner[0] = np.clip((feathering - np.minimum(rows, columns)) / feathering, 0, 1) ** 2
    return padded, np.pad(inner, borders, constant_values=1)


def _distance(size: int, before: int, after: int, far: int) -> NDArray[np.intp]:
    """For each row or column how far the nearest padded edge is; an edge without padding counts as far away."""
    place = np.arange(size)
    nearest = np.minimum(place if before else np.full(size, far), size - place if after else np.full(size, far))
    return np.asarray(nearest, np.intp)


def _repeat(image: Floats, amount: int) -> tuple[Floats]:
    return (np.tile(image, (amount, 1, 1, 1)),)


def _from_batch(image: Floats, batch_index: int, length: int) -> tuple[Floats]:
    first = min(len(image) - 1, batch_index)
    return (image[first : first + length],)


def _flip(image: Floats, flip_method: str) -> tuple[Floats]:
    return (np.flip(image, 1 if flip_method.startswith("x") else 2),)


def _rotate(image: Floats, rotation: str) -> tuple[Floats]:
    turns = {"90 degrees": 1, "180 degrees": 2, "270 degrees": 3}.get(rotation, 0)
    return (np.rot90(image, turns, axes=(2, 1)),)


def _size(image: Floats) -> tuple[int, int, int]:
    return image.shape[2], image.shape[1], image.shape[0]


_EXTRA = "comfy_extras.nodes_images"
_POST = "comfy_extras.nodes_post_processing"
_IMAGE_V3 = Input("IMAGE", {})

NODES = (
    Node(
        "EmptyImage",
        _empty,
        {
            "width": _SIDE_FROM_ONE,
            "height": _SIDE_FROM_ONE,
            "batch_size": integer(1, 1, 4096, step=None),
            "color": integer(0, 0, 0xFFFFFF, display="color"),
        },
        ("IMAGE",),
        display_name="EmptyImage",
    ),
    Node(
        "ImageScale",
        _scale,
        {
            "image": _IMAGE,
            "upscale_method": _METHOD,
            "width": _SIDE,
            "height": _SIDE,
            "crop": combo("disabled", "center"),
        },
        ("IMAGE",),
        display_name="Upscale Image",
        category="image/upscaling",
    ),
    Node(
        "ImageScaleBy",
        _scale_by,
        {"image": _IMAGE, "upscale_method": _METHOD, "scale_by": number(1.0, 0.01, 8.0, 0.01)},
        ("IMAGE",),
        display_name="Upscale Image By",
        category="image/upscaling",
    ),
    Node("ImageInvert", _invert, {"image": _IMAGE}, ("IMAGE",), display_name="Invert Image"),
    Node("ImageBatch", _batch, {"image1": _IMAGE, "image2": _IMAGE}, ("IMAGE",), display_name="Batch Images"),
    Node(
        "ImagePadForOutpaint",
        _pad,
        {
            "image": _IMAGE,
            **{side: integer(0, 0, MAX_SIDE, 8) for side in ("left", "top", "right", "bottom")},
            "feathering": integer(40, 0, MAX_SIDE),
        },
        ("IMAGE", "MASK"),
        display_name="Pad Image for Outpainting",
    ),
    Node(
        "ImageBlur",
        _blur,
        {"image": _IMAGE_V3, "blur_radius": integer(1, 1, 31), "sigma": number(1.0, 0.1, 10.0, 0.1)},
        ("IMAGE",),
        category="image/postprocessing",
        module=_POST,
        schema=True,
    ),
    Node(
        "ImageSharpen",
        _sharpen,
        {
            "image": _IMAGE_V3,
            "sharpen_radius": integer(1, 1, 31),
            "sigma": number(1.0, 0.1, 10.0, 0.01),
            "alpha": number(1.0, 0.0, 5.0, 0.01),
        },
        ("IMAGE",),
        category="image/postprocessing",
        module=_POST,
        schema=True,
    ),
    Node(
        "ImageBlend",
        _blend,
        {
            "image1": _IMAGE_V3,
            "image2": _IMAGE_V3,
            "blend_factor": number(0.5, 0.0, 1.0, 0.01),
            "blend_mode": Input(COMBO, choices=tuple(_BLENDS)),
        },
        ("IMAGE",),
        category="image/postprocessing",
        module=_POST,
        schema=True,
    ),
    Node(
        "ImageCrop",
        _crop,
        {
            "image": _IMAGE,
            "width": _SIDE_FROM_ONE,
            "height": _SIDE_FROM_ONE,
            "x": integer(0, 0, MAX_SIDE),
            "y": integer(0, 0, MAX_SIDE),
        },
        ("IMAGE",),
        display_name="Image Crop",
        category="image/transform",
        module=_EXTRA,
    ),
    Node(
        "RepeatImageBatch",
        _repeat,
        {"image": _IMAGE, "amount": integer(1, 1, 4096, step=None)},
        ("IMAGE",),
        display_name="RepeatImageBatch",
        category="image/batch",
        module=_EXTRA,
    ),
    Node(
        "ImageFromBatch",
        _from_batch,
        {"image": _IMAGE, "batch_index": integer(0, 0, 4095, step=None), "length": integer(1, 1, 4096, step=None)},
        ("IMAGE",),
        display_name="ImageFromBatch",
        category="image/batch",
        module=_EXTRA,
    ),
    Node(
        "ImageFlip",
        _flip,
        {"image": _IMAGE, "flip_method": combo("x-axis: vertically", "y-axis: horizontally")},
        ("IMAGE",),
        display_name="ImageFlip",
        category="image/transform",
        module=_EXTRA,
    ),
    Node(
        "ImageRotate",
        _rotate,
        {"image": _IMAGE, "rotation": combo("none", "90 degrees", "180 degrees", "270 degrees")},
        ("IMAGE",),
        display_name="ImageRotate",
        category="image/transform",
        module=_EXTRA,
    ),
    Node(
        "GetImageSize",
        _size,
        {"image": _IMAGE},
        ("INT", "INT", "INT"),
        hidden={"unique_id": "UNIQUE_ID"},
        output_names=("width", "height", "batch_size"),
        display_name="Get Image Size",
        description="Returns width and height of the image, and passes it through unchanged.",
        module=_EXTRA,
    ),
)

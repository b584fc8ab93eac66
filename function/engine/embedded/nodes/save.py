"""Nodes that write images: SaveImage, PreviewImage, MaskPreview, SaveAnimatedWEBP, SaveAnimatedPNG."""

from __future__ import annotations

import json
import secrets
import string
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from function.engine.embedded.folders import SavePath, save_path
from function.engine.embedded.nodes.mask import as_image
from function.engine.embedded.nodes.node import Context, Input, Node, Shown, combo, integer, number
from function.engine.embedded.resample import to_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
_COMFY_CHUNK = b"comf"  # ComfyUI's own kind of PNG chunk, behind the pixels
_EXIF_MODEL, _EXIF_MAKE = 0x0110, 0x010F  # where ComfyUI puts the prompt and, downwards, the other texts


def _save(context: Context, images: Floats, filename_prefix: str) -> Shown:
    target = save_path(filename_prefix, context.folders.output, images.shape[2], images.shape[1])
    return Shown({"images": _save_all(context, images, target, place="output", compress_level=4)})


def _preview(context: Context, images: Floats) -> Shown:
    return _save_temporary(context, images, compress_level=1)


def _preview_mask(context: Context, mask: Floats) -> Shown:
    return _save_temporary(context, as_image(mask), compress_level=4)


def _save_temporary(context: Context, images: Floats, *, compress_level: int) -> Shown:
    suffix = "".join(secrets.choice(string.ascii_lowercase) for _ in range(5))
    target = save_path(f"ComfyUI_temp_{suffix}", context.folders.temp, images.shape[2], images.shape[1])
    return Shown({"images": _save_all(context, images, target, place="temp", compress_level=compress_level)})


def _save_all(
    context: Context, images: Floats, target: SavePath, *, place: str, compress_level: int
) -> list[dict[str, str]]:
    texts = _png_texts(context)
    saved = []
    for number_in_batch, image in enumerate(images):
        stem = target.stem.replace("%batch_num%", str(number_in_batch))
        name = f"{stem}_{target.counter + number_in_batch:05}_.png"
        picture = PillowImage.fromarray(to_bytes(image))
        picture.save(target.directory / name, pnginfo=texts, compress_level=compress_level)
        saved.append({"filename": name, "subfolder": target.subfolder, "type": place})
    return saved


def texts_of(context: Context) -> dict[str, str]:
    """What a saved file says about its making, by name: the prompt, and what `extra_data` brought; each as JSON."""
    if not context.metadata:
        return {}
    values: dict[str, Any] = {"prompt": context.prompt, **(context.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in values.items()}


def _png_texts(context: Context) -> PngInfo:
    info = PngInfo()
    for name, text in texts_of(context).items():
        info.add_text(name, text)
    return info


def _save_webp(
    context: Context, images: Floats, filename_prefix: str, fps: float, *, lossless: bool, quality: int, method: str
) -> Shown:
    target = save_path(filename_prefix, context.folders.output, images.shape[2], images.shape[1])
    name = f"{target.stem}_{target.counter:05}_.webp"
    first, *rest = [PillowImage.fromarray(to_bytes(image)) for image in images]
    exif = first.getexif()
    for place, (key, text) in enumerate(texts_of(context).items()):
        exif[_EXIF_MODEL if place == 0 else _EXIF_MAKE - place + 1] = f"{key}:{text}"
    first.save(
        target.directory / name,
        save_all=True,
        append_images=rest,
        duration=int(1000 / fps),
        exif=exif,
        lossless=lossless,
        quality=quality,
        method=_WEBP_METHODS[method],
    )
    saved = [{"filename": name, "subfolder": target.subfolder, "type": "output"}]
    return Shown({"images": saved, "animated": [len(images) != 1]})


def _save_png(context: Context, images: Floats, filename_prefix: str, fps: float, *, compress_level: int) -> Shown:
    target = save_path(filename_prefix, context.folders.output, images.shape[2], images.shape[1])
    name = f"{target.stem}_{target.counter:05}_.png"
    first, *rest = [PillowImage.fromarray(to_bytes(image)) for image in images]
    info = PngInfo()
    for key, text in texts_of(context).items():
        info.add(_COMFY_CHUNK, f"{key}\0{text}".encode("latin-1"), after_idat=True)
    first.save(
        target.directory / name,
        pnginfo=info,
        compress_level=compress_level,
        save_all=True,
        duration=int(1000 / fps),
        append_images=rest,
    )
    return Shown({"images": [{"filename": name, "subfolder": target.subfolder, "type": "output"}], "animated": [True]})


_PREFIX_HELP = (
    "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or "
    "%Empty Latent Image.width% to include values from nodes."
)
_DESCRIPTION = "Saves the input images to your ComfyUI output directory."

NODES = (
    Node(
        "SaveImage",
        _save,
        {
            "images": Input("IMAGE", {"tooltip": "The images to save."}),
            "filename_prefix": Input("STRING", {"default": "ComfyUI", "tooltip": _PREFIX_HELP}),
        },
        hidden=HIDDEN,
        display_name="Save Image",
        description=_DESCRIPTION,
        is_output=True,
        uses_context=True,
    ),
    Node(
        "PreviewImage",
        _preview,
        {"images": Input("IMAGE")},
        hidden=HIDDEN,
        display_name="Preview Image",
        description=_DESCRIPTION,
        is_output=True,
        uses_context=True,
    ),
    Node(
        "MaskPreview",
        _preview_mask,
        {"mask": Input("MASK")},
        hidden=HIDDEN,
        display_name="MaskPreview",
        description=_DESCRIPTION,
        category="mask",
        module="comfy_extras.nodes_mask",
        is_output=True,
        uses_context=True,
    ),
    Node(
        "SaveAnimatedWEBP",
        _save_webp,
        {
            "images": Input("IMAGE"),
            "filename_prefix": Input("STRING", {"default": "ComfyUI"}),
            "fps": number(6.0, 0.01, 1000.0, 0.01),
            "lossless": Input("BOOLEAN", {"default": True}),
            "quality": integer(80, 0, 100, step=None),
            "method": combo(*_WEBP_METHODS),
        },
        hidden=HIDDEN,
        display_name="SaveAnimatedWEBP",
        category="image/animation",
        module="comfy_extras.nodes_images",
        is_output=True,
        uses_context=True,
    ),
    Node(
        "SaveAnimatedPNG",
        _save_png,
        {
            "images": Input("IMAGE"),
            "filename_prefix": Input("STRING", {"default": "ComfyUI"}),
            "fps": number(6.0, 0.01, 1000.0, 0.01),
            "compress_level": integer(4, 0, 9, step=None),
        },
        hidden=HIDDEN,
        display_name="SaveAnimatedPNG",
        category="image/animation",
        module="comfy_extras.nodes_images",
        is_output=True,
        uses_context=True,
    ),
)

"""Nodes that read image files: LoadImage, LoadImageMask."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps, ImageSequence

from function.engine.embedded.folders import IMAGE_EXTENSIONS
from function.engine.embedded.nodes.node import COMBO, Context, Input, Node, combo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from function.engine.embedded.folders import Folders

    Floats: TypeAlias = NDArray[np.float32]

_NO_MASK = (64, 64)  # the size of the empty mask of an image without transparency
_SINGLE_FRAME_FORMATS = frozenset({"MPO"})


def input_path(folders: Folders, name: str) -> Path:
    """The file that a loader's input names.

    Raises:
        FileNotFoundError: It points outside.
    """
    path = folders.annotated_path(name)
    if path is None:
        raise FileNotFoundError(f"Invalid file: {name}")
    return path


def missing_file(folders: Folders, name: str, kind: str) -> str | None:
    """What a loader says of a file that isn't there; None of one that is."""
    path = folders.annotated_path(name)
    return None if path is not None and path.exists() else f"Invalid {kind} file: {name}"


def digest(folders: Folders, name: str) -> str:
    """A digest of the content of an input file.

    Raises:
        OSError: It can't be read.
    """
    with input_path(folders, name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folders: Folders) -> list[str]:
    return folders.input_names(IMAGE_EXTENSIONS)


def _exists(folders: Folders, inputs: Mapping[str, Any]) -> str | None:
    return missing_file(folders, str(inputs["image"]), "image")


def _digest(folders: Folders, inputs: Mapping[str, Any]) -> str:
    return digest(folders, str(inputs["image"]))


def _load(context: Context, image: str) -> tuple[Floats, Floats]:
    """All frames of the file that have the size of the first one, and their masks: 1 where transparent."""
    images: list[Floats] = []
    masks: list[Floats] = []
    with PillowImage.open(input_path(context.folders, image)) as file:
        for raw in ImageSequence.Iterator(file):
            frame = ImageOps.exif_transpose(raw)
            colours = _colours(frame)
            if images and colours.shape != images[0].shape:
                continue
            images.append(colours)
            masks.append(_mask(frame))
        last = 1 if file.format in _SINGLE_FRAME_FORMATS else len(images)
    return np.stack(images[:last]), np.stack(masks[:last])


def _colours(frame: PillowImage.Image) -> Floats:
    if frame.mode == "I":
        frame = frame.point(lambda value: value * (1 / 255))
    return _plane(frame.convert("RGB"))


def _plane(picture: PillowImage.Image) -> Floats:
    return np.asarray(picture, np.float32) / np.float32(255)


def _mask(frame: PillowImage.Image) -> Floats:
    if "A" in frame.getbands():
        return np.float32(1) - _plane(frame.getchannel("A"))
    if frame.mode == "P" and "transparency" in frame.info:
        return np.float32(1) - _plane(frame.convert("RGBA").getchannel("A"))
    return np.zeros(_NO_MASK, np.float32)


def _load_mask(context: Context, image: str, channel: str) -> tuple[Floats]:
    band = channel[0].upper()
    with PillowImage.open(input_path(context.folders, image)) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.getbands() != ("R", "G", "B", "A"):
            picture = (picture.point(lambda value: value * (1 / 255)) if picture.mode == "I" else picture).convert(
                "RGBA"
            )
        plane = _plane(picture.getchannel(band))
    return ((np.float32(1) - plane if band == "A" else plane)[None],)


_FILE = Input(COMBO, {"image_upload": True}, choices=_names)

NODES = (
    Node(
        "LoadImage",
        _load,
        {"image": _FILE},
        ("IMAGE", "MASK"),
        display_name="Load Image",
        uses_context=True,
        fingerprint=_digest,
        check=_exists,
        checked=("image",),
    ),
    Node(
        "LoadImageMask",
        _load_mask,
        {"image": _FILE, "channel": combo("alpha", "red", "green", "blue")},
        ("MASK",),
        display_name="Load Image (as Mask)",
        category="mask",
        uses_context=True,
        fingerprint=_digest,
        check=_exists,
        checked=("image",),
    ),
)

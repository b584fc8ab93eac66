"""Upscaling with a model file: UpscaleModelLoader, ImageUpscaleWithModel."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded.networks.layers import read_state
from function.engine.embedded.networks.tiles import tile_count, upscale_tiled
from function.engine.embedded.networks.upscalers import Upscaler, upscaler_from
from function.engine.embedded.nodes.node import COMBO, Context, Input, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from function.engine.embedded.folders import Folders

    Floats: TypeAlias = NDArray[np.float32]

_FOLDER = "upscale_models"
_MODULE = "comfy_extras.nodes_upscale_model"


def _names(folders: Folders) -> list[str]:
    return folders.model_names(_FOLDER)


def _load(context: Context, model_name: str) -> tuple[Upscaler]:
    return (upscaler_from(read_state(context.folders.model_path(_FOLDER, model_name))),)


def _upscale(context: Context, upscale_model: Upscaler, image: Floats) -> tuple[Floats]:
    steps = len(image) * tile_count(*image.shape[1:3])
    done = 0

    def after_tile() -> None:
        nonlocal done
        done += 1
        context.progress(done, steps)

    planes = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    larger = np.stack([upscale_tiled(one, upscale_model, after_tile) for one in planes])
    return (np.clip(larger.transpose(0, 2, 3, 1), 0, 1),)


NODES = (
    Node(
        "UpscaleModelLoader",
        _load,
        {"model_name": Input(COMBO, choices=_names)},
        ("UPSCALE_MODEL",),
        display_name="Load Upscale Model",
        category="loaders",
        module=_MODULE,
        schema=True,
        uses_context=True,
    ),
    Node(
        "ImageUpscaleWithModel",
        _upscale,
        {"upscale_model": Input("UPSCALE_MODEL"), "image": Input("IMAGE")},
        ("IMAGE",),
        display_name="Upscale Image (using Model)",
        category="image/upscaling",
        module=_MODULE,
        schema=True,
        uses_context=True,
    ),
)

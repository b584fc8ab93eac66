"""Nodes about latents: arrays (batch, channels, height / 8, width / 8) of float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np

from function.engine.embedded.folders import LATENT_EXTENSIONS, save_path
from function.engine.embedded.nodes.loaders import digest, input_path, missing_file
from function.engine.embedded.nodes.node import COMBO, MAX_SIDE, Context, Input, Node, Shown, integer
from function.engine.embedded.nodes.save import HIDDEN, texts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from function.engine.embedded.folders import Folders

    Floats: TypeAlias = NDArray[np.float32]

_CHANNELS, _RATIO = 4, 8  # of Stable Diffusion's latents
_TENSOR, _VERSION = "latent_tensor", "latent_format_version_0"
_OLD_SCALE = np.float32(0.18215)  # files without a version hold latents that were scaled by it
_CATEGORY = "_for_testing"


class Latent(TypedDict):
    """What travels over a LATENT link."""

    samples: Floats


def _empty(width: int, height: int, batch_size: int) -> tuple[Latent]:
    return ({"samples": np.zeros((batch_size, _CHANNELS, height // _RATIO, width // _RATIO), np.float32)},)


def _save(context: Context, samples: Latent, filename_prefix: str) -> Shown:
    from safetensors.numpy import save_file  # noqa: PLC0415  (as `read_state`)

    target = save_path(filename_prefix, context.folders.output, 0, 0)
    name = f"{target.stem}_{target.counter:05}_.latent"
    content = {_TENSOR: np.ascontiguousarray(samples["samples"]), _VERSION: np.zeros(0, np.float32)}
    save_file(content, target.directory / name, metadata=texts_of(context) or None)
    return Shown({"latents": [{"filename": name, "subfolder": target.subfolder, "type": "output"}]})


def _load(context: Context, latent: str) -> tuple[Latent]:
    from safetensors.numpy import load_file  # noqa: PLC0415  (as `read_state`)

    content = load_file(input_path(context.folders, latent))
    scale = np.float32(1) if _VERSION in content else 1 / _OLD_SCALE
    return ({"samples": content[_TENSOR].astype(np.float32) * scale},)


def _names(folders: Folders) -> list[str]:
    return folders.input_names(LATENT_EXTENSIONS)


def _digest(folders: Folders, inputs: Mapping[str, Any]) -> str:
    return digest(folders, str(inputs["latent"]))


def _exists(folders: Folders, inputs: Mapping[str, Any]) -> str | None:
    return missing_file(folders, str(inputs["latent"]), "latent")


def _side(name: str) -> Input:
    return integer(512, 16, MAX_SIDE, 8, tooltip=f"The {name} of the latent images in pixels.")


NODES = (
    Node(
        "EmptyLatentImage",
        _empty,
        {
            "width": _side("width"),
            "height": _side("height"),
            "batch_size": integer(1, 1, 4096, step=None, tooltip="The number of latent images in the batch."),
        },
        ("LATENT",),
        display_name="Empty Latent Image",
        description="Create a new batch of empty latent images to be denoised via sampling.",
        category="latent",
        output_tooltips=("The empty latent image batch.",),
    ),
    Node(
        "SaveLatent",
        _save,
        {"samples": Input("LATENT"), "filename_prefix": Input("STRING", {"default": "latents/ComfyUI"})},
        hidden=HIDDEN,
        display_name="SaveLatent",
        category=_CATEGORY,
        is_output=True,
        uses_context=True,
    ),
    Node(
        "LoadLatent",
        _load,
        {"latent": Input(COMBO, choices=_names)},
        ("LATENT",),
        display_name="LoadLatent",
        category=_CATEGORY,
        uses_context=True,
        fingerprint=_digest,
        check=_exists,
        checked=("latent",),
    ),
)

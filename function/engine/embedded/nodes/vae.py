"""The autoencoder: VAELoader, VAEEncode, VAEDecode. This core has TAESD only."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from function.engine.embedded.errors import ReportedError
from function.engine.embedded.networks.layers import read_state
from function.engine.embedded.networks.taesd import DECODER, ENCODER, Taesd, is_taesd
from function.engine.embedded.nodes.node import COMBO, Context, Input, Node

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from function.engine.embedded.folders import Folders
    from function.engine.embedded.networks.layers import State
    from function.engine.embedded.nodes.latent import Latent

    Floats: TypeAlias = NDArray[np.float32]

_PAIRS = {"taesd": (0.18215, 0.0), "taesdxl": (0.13025, 0.0), "taesd3": (1.5305, 0.0609), "taef1": (0.3611, 0.1159)}
"""Autoencoders that live as two files in vae_approx: name -> scale and shift of their latents."""

_PIXEL_SPACE = "pixel_space"


def _names(folders: Folders) -> list[str]:
    approximate = folders.model_names("vae_approx")
    pairs = [
        name
        for name in _PAIRS
        if all(any(file.startswith(f"{name}_{half}.") for file in approximate) for half in ("encoder", "decoder"))
    ]
    return [*folders.model_names("vae"), *pairs, _PIXEL_SPACE]


def _load(context: Context, vae_name: str) -> tuple[Taesd]:
    if vae_name in _PAIRS:
        return (_from_pair(context.folders, vae_name),)
    if vae_name == _PIXEL_SPACE:
        raise ReportedError("RuntimeError", "the embedded engine has no pixel_space autoencoder")
    state = read_state(context.folders.model_path("vae", vae_name))
    if not is_taesd(state):
        hint = "If the VAE is from a checkpoint loader your checkpoint does not contain a valid VAE."
        raise ReportedError("RuntimeError", f"ERROR: VAE is invalid: None\n\n{hint}")
    return (Taesd(state, *(_value(state, key, default) for key, default in (("vae_scale", 1.0), ("vae_shift", 0.0)))),)


def _value(state: State, key: str, default: float) -> float:
    return float(state[key]) if key in state else default


def _from_pair(folders: Folders, name: str) -> Taesd:
    files = folders.model_names("vae_approx")
    state: dict[str, Floats] = {}
    for half, prefix in (("encoder", ENCODER), ("decoder", DECODER)):
        file = next(file for file in files if file.startswith(f"{name}_{half}."))
        weights = read_state(folders.model_path("vae_approx", file))
        state |= {f"{prefix}.{key}": value for key, value in weights.items()}
    return Taesd(state, *_PAIRS[name])


def _encode(pixels: Floats, vae: Taesd) -> tuple[Latent]:
    return ({"samples": vae.encode(pixels)},)


def _decode(samples: Latent, vae: Taesd) -> tuple[Floats]:
    return (vae.decode(samples["samples"]),)


NODES = (
    Node(
        "VAELoader",
        _load,
        {"vae_name": Input(COMBO, choices=_names)},
        ("VAE",),
        display_name="Load VAE",
        category="loaders",
        uses_context=True,
    ),
    Node(
        "VAEEncode",
        _encode,
        {"pixels": Input("IMAGE"), "vae": Input("VAE")},
        ("LATENT",),
        display_name="VAE Encode",
        category="latent",
    ),
    Node(
        "VAEDecode",
        _decode,
        {
            "samples": Input("LATENT", {"tooltip": "The latent to be decoded."}),
            "vae": Input("VAE", {"tooltip": "The VAE model used for decoding the latent."}),
        },
        ("IMAGE",),
        display_name="VAE Decode",
        description="Decodes latent images back into pixel space images.",
        category="latent",
        output_tooltips=("The decoded image.",),
    ),
)

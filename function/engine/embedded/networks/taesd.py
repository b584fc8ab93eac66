"""TAESD, the tiny autoencoder for Stable Diffusion's latents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded.networks.layers import conv, enlarge, relu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from function.engine.embedded.networks.layers import State

    Floats: TypeAlias = NDArray[np.float32]

ENCODER, DECODER = "taesd_encoder", "taesd_decoder"
RATIO = 8
"""Pixels per latent pixel, along each side."""

_CLAMP = np.float32(3)  # the decoder squeezes latents softly into -3..3


@dataclass(frozen=True, slots=True)
class Taesd:
    """A loaded autoencoder; `scale` and `shift` turn its latents into Stable Diffusion's."""

    state: State
    scale: float
    shift: float

    def encode(self, pixels: Floats) -> Floats:
        """Images (batch, height, width, 3) to latents (batch, channels, height / 8, width / 8)."""
        cropped = _cropped(pixels)[..., :3].transpose(0, 3, 1, 2)
        return np.stack([self._encoded(image) for image in cropped]) / np.float32(self.scale) + np.float32(self.shift)

    def decode(self, latents: Floats) -> Floats:
        """Latents to images (batch, height, width, 3) in 0..1."""
        plain = (latents - np.float32(self.shift)) * np.float32(self.scale)
        return np.clip(np.stack([self._decoded(latent) for latent in plain]), 0, 1).transpose(0, 2, 3, 1)

    def _encoded(self, image: Floats) -> Floats:
        for layer in _layers(self.state, ENCODER):
            downwards = f"{layer}.weight" in self.state and f"{layer}.bias" not in self.state
            image = _layer(self.state, layer, image, stride=2 if downwards else 1)
        return image

    def _decoded(self, latent: Floats) -> Floats:
        first, *rest = _layers(self.state, DECODER)
        image = relu(conv(self.state, first, np.tanh(latent / _CLAMP) * _CLAMP))
        for layer in rest:
            upwards = f"{layer}.weight" in self.state and f"{layer}.bias" not in self.state
            image = _layer(self.state, layer, enlarge(image, 2) if upwards else image)
        return image


def is_taesd(state: State) -> bool:
    """Whether these weights hold both halves of the autoencoder."""
    return f"{DECODER}.1.weight" in state and f"{ENCODER}.0.weight" in state


def _layers(state: State, part: str) -> list[str]:
    """Names of the layers that have weights, in order; those without (upsampling, activation) are implied."""
    numbers = {int(match[1]) for name in state if (match := re.match(rf"{part}\.(\d+)\.", name))}
    return [f"{part}.{number}" for number in sorted(numbers)]


def _layer(state: State, name: str, image: Floats, stride: int = 1) -> Floats:
    if f"{name}.conv.0.weight" not in state:
        return conv(state, name, image, stride)
    inner = relu(conv(state, f"{name}.conv.0", image))
    inner = relu(conv(state, f"{name}.conv.2", inner))
    return relu(conv(state, f"{name}.conv.4", inner) + image)


def _cropped(pixels: Floats) -> Floats:
    """The middle of the image whose sides are multiples of 8."""
    height, width = (side // RATIO * RATIO for side in pixels.shape[1:3])
    top, left = ((side % RATIO) // 2 for side in pixels.shape[1:3])
    return pixels[:, top : top + height, left : left + width]

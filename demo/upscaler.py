"""A small upscaler model whose weights are worked out, not trained: quadratic interpolation as a neural network.

The architecture is Real-ESRGAN's "compact" network (SRVGGNetCompact): 3x3 convolutions `body.0`, `body.2`, ... with
PReLUs `body.1`, `body.3`, ... between them, a pixel shuffle, and the input enlarged without interpolation added at the
end. A PReLU is a slope per channel for negative values: slope 1 keeps the channel linear, slope 0 makes it a ReLU.

Convolutions pad with zeros, so plain interpolation would darken the borders. A channel that is 1 everywhere finds
them: seen from a border pixel, its neighbour outside the picture is 0. For values x up to 2, relu(x - 2 * neighbour) is
x beside a border and 0 elsewhere, which is what the missing neighbour has to be replaced with. The network does this
for columns (`body.2`, `body.4`), then for rows (`body.6`, `body.8`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Weights: TypeAlias = NDArray[np.float16]
    Taps: TypeAlias = tuple[float, float, float]
    Place: TypeAlias = tuple[int, int]

ONE = 3  # the channel that is 1 everywhere; channels 0 to 2 are the picture, those behind are worked out from it
CENTRE, LEFT, RIGHT, ABOVE, BELOW = (1, 1), (1, 0), (1, 2), (0, 1), (2, 1)  # row and column in a kernel


def write_upscaler(path: Path, scale: int = 2) -> None:
    """Write the model as safetensors in half precision, enlarging 2 to 4 times; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(upscaler_weights(scale), path, metadata={"format": "pt"})


def upscaler_weights(scale: int) -> dict[str, Weights]:
    """Every tensor of the model by its name in the architecture."""
    width = 4 + 9 * scale
    layers = [
        _find_picture(_Layer(3, width)),
        _find_borders(_Layer(width, width), range(3), 4, (LEFT, RIGHT)),
        _interpolate_columns(_Layer(width, width), quadratic_taps(scale)),
        _find_borders(_Layer(width, width), range(4, 4 + 3 * scale), 4 + 3 * scale, (ABOVE, BELOW)),
        _interpolate_rows(_Layer(width, 3 * scale**2), quadratic_taps(scale)),
    ]
    tensors: dict[str, Weights] = {}
    for number, layer in enumerate(layers):
        tensors |= {f"body.{2 * number}.weight": layer.weight, f"body.{2 * number}.bias": layer.bias}
        if layer is not layers[-1]:
            tensors[f"body.{2 * number + 1}.weight"] = layer.slope
    return tensors


def quadratic_taps(scale: int) -> list[Taps]:
    """What the pixel before, the pixel itself and the pixel after count for in each of the pixel's `scale` parts.

    The parabola through the three, read where the part's centre is; for scale 2 exact in half precision.
    """
    offsets = [(2 * part + 1 - scale) / (2 * scale) for part in range(scale)]
    return [(t * (t - 1) / 2, 1 - t * t, t * (t + 1) / 2) for t in offsets]


class _Layer:
    """A convolution with its PReLU: nothing is connected at first, every channel is linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = np.zeros((outputs, inputs, 3, 3), np.float16)
        self.bias = np.zeros(outputs, np.float16)
        self.slope = np.ones(outputs, np.float16)

    def connect(self, output: int, source: int, factor: float = 1, *, at: Place = CENTRE) -> None:
        """Let the input channel at this place of the kernel count for so much in the output channel."""
        self.weight[output, source, *at] += np.float16(factor)

    def connect_side(self, output: int, source: int, factor: float, *, at: Place, border: int) -> None:
        """Connect a neighbour, and the channel that stands for it where it is outside the picture."""
        self.connect(output, source, factor, at=at)
        self.connect(output, border, factor)


def _find_picture(layer: _Layer) -> _Layer:
    for colour in range(3):
        layer.connect(colour, colour)
    layer.bias[ONE] = 1
    return layer


def _find_borders(layer: _Layer, channels: range, first: int, sides: tuple[Place, Place]) -> _Layer:
    """Hand on all before `first`; from there, side after side, put each channel where the neighbour is outside."""
    for channel in range(first):
        layer.connect(channel, channel)
    for number, side in enumerate(sides):
        for output, channel in enumerate(channels, first + number * len(channels)):
            layer.connect(output, channel)
            layer.connect(output, ONE, -2, at=side)
            layer.slope[output] = 0
    return layer


def _interpolate_columns(layer: _Layer, taps: list[Taps]) -> _Layer:
    """Hand the picture on and append the parts of its columns."""
    for channel in range(ONE + 1):
        layer.connect(channel, channel)
    for part, (before, here, after) in enumerate(taps):
        for colour in range(3):
            output = 4 + 3 * part + colour
            layer.connect(output, colour, here)
            layer.connect_side(output, colour, before, at=LEFT, border=4 + colour)
            layer.connect_side(output, colour, after, at=RIGHT, border=7 + colour)
    return layer


def _interpolate_rows(layer: _Layer, taps: list[Taps]) -> _Layer:
    """The residual: the parts of the rows less the picture itself, in the order that the pixel shuffle expects."""
    scale = len(taps)
    for row, column, colour in np.ndindex(scale, scale, 3):
        before, here, after = taps[row]
        output = colour * scale**2 + row * scale + column
        source = 4 + 3 * column + colour
        layer.connect(output, source, here)
        layer.connect_side(output, source, before, at=ABOVE, border=source + 3 * scale)
        layer.connect_side(output, source, after, at=BELOW, border=source + 6 * scale)
        layer.connect(output, colour, -1)
    return layer

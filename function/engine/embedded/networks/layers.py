"""Layers on one image (channels, height, width) of float32, with torch's meaning, and the reading of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from function.engine.embedded.errors import ReportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    State: TypeAlias = Mapping[str, Floats]

_STRIP_BYTES = 16 * 1024 * 1024
_KERNEL = 3


def read_state(path: Path) -> dict[str, Floats]:
    """The weights of a safetensors file as float32.

    Raises:
        safetensors.SafetensorError: The file is no whole safetensors file.
        ReportedError: Another kind of file; this core unpickles nothing.
    """
    from safetensors.numpy import load_file  # noqa: PLC0415  (0.1 s that only prompts with a model need)

    if path.suffix not in {".safetensors", ".sft"}:
        raise ReportedError("RuntimeError", f"the embedded engine reads safetensors files only, not {path.name}")
    return {name: np.asarray(value, np.float32) for name, value in load_file(path).items()}


def check_state(network: str, state: State, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the weights with what the network needs.

    Raises:
        ReportedError: Weights are missing or of another shape; worded as torch's `load_state_dict` words it.
    """
    missing = ", ".join(f'"{name}"' for name in shapes if name not in state)
    problems = [f"Missing key(s) in state_dict: {missing}. "] if missing else []
    problems += [
        f"size mismatch for {name}: copying a param with shape {_size(state[name].shape)} from checkpoint, "
        f"the shape in current model is {_size(shape)}."
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        raise ReportedError(
            "RuntimeError", f"Error(s) in loading state_dict for {network}:\n\t" + "\n\t".join(problems)
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"torch.Size({list(shape)})"


def convolve(image: Floats, weight: Floats, bias: Floats | None, stride: int = 1) -> Floats:
    """A 3x3 convolution with a border of zeros, strip by strip so that the unfolded image stays small."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (_KERNEL, _KERNEL), axis=(1, 2))[:, ::stride, ::stride]
    channels, height, width = windows.shape[:3]
    matrix = weight.reshape(len(weight), -1)
    rows = max(1, _STRIP_BYTES // (matrix.shape[1] * width * 4))
    result = np.empty((len(weight), height, width), np.float32)
    for top in range(0, height, rows):
        strip = windows[:, top : top + rows].transpose(0, 3, 4, 1, 2)
        unfolded = strip.reshape(channels * _KERNEL * _KERNEL, -1)
        result[:, top : top + rows] = (matrix @ unfolded).reshape(len(weight), -1, width)
    if bias is not None:
        result += bias[:, None, None]
    return result


def conv(state: State, name: str, image: Floats, stride: int = 1) -> Floats:
    """The convolution of this name, with its bias where it has one."""
    return convolve(image, state[f"{name}.weight"], state.get(f"{name}.bias"), stride)


def relu(image: Floats) -> Floats:
    """Negative values become zero."""
    return np.maximum(image, np.float32(0))


def leaky_relu(image: Floats, slope: float = 0.2) -> Floats:
    """Negative values are scaled by `slope`."""
    return np.asarray(np.maximum(image, image * np.float32(slope)), np.float32)


def prelu(image: Floats, slopes: Floats) -> Floats:
    """Negative values are scaled by a learnt slope per channel."""
    return np.asarray(np.where(image > 0, image, image * slopes[:, None, None]), np.float32)


def enlarge(image: Floats, factor: int) -> Floats:
    """Nearest neighbour upsampling."""
    return image.repeat(factor, axis=1).repeat(factor, axis=2)


def pixel_shuffle(image: Floats, factor: int) -> Floats:
    """Channels become pixels: (c * factor², h, w) to (c, h * factor, w * factor)."""
    channels, height, width = image.shape
    blocks = image.reshape(channels // factor**2, factor, factor, height, width)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(-1, height * factor, width * factor)

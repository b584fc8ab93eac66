"""Layers on one image (channels, height, width) of float32, with torch's meaning, and the reading of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded.errors import ReportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    State: TypeAlias = Mapping[str, Floats]

_STRIP_BYTES = 1024 * 1024
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
    """A 3x3 convolution with a border of zeros: one matrix product for each row of the kernel.

    The image is unfolded sideways only, because a strip of rows is a matrix as it lies; and strip by strip, so that
    what the products add up in stays in the processor's cache.
    """
    columns = _columns(image, stride)
    kernel_rows = weight.transpose(2, 0, 3, 1).reshape(_KERNEL, len(weight), -1)
    height, width = (image.shape[1] - 1) // stride + 1, columns.shape[2]
    rows = max(1, _STRIP_BYTES // (len(weight) * width * 4))
    result = np.empty((len(weight), height * width), np.float32)
    part = np.empty((len(weight), min(rows, height) * width), np.float32)
    for top in range(0, height, rows):
        strip = result[:, top * width : (top + rows) * width]
        pixels = strip.shape[1]
        for row, kernel in enumerate(kernel_rows):
            first = top * stride + row
            taken = columns[:, first : first + (pixels // width - 1) * stride + 1 : stride].reshape(-1, pixels)
            np.matmul(kernel, taken, out=part[:, :pixels] if row else strip)
            if row:
                strip += part[:, :pixels]
        if bias is not None:
            strip += bias[:, None]
    return result.reshape(-1, height, width)


def _columns(image: Floats, stride: int) -> Floats:
    """Each pixel's left neighbour, itself and its right one: (3 * channels, height + 2, width / stride)."""
    channels, height, width = image.shape
    columns = np.zeros((_KERNEL, channels, height + 2, (width - 1) // stride + 1), np.float32)
    columns[0, :, 1:-1, 1:] = image[:, :, stride - 1 : -1 : stride] if stride > 1 else image[:, :, :-1]
    columns[1, :, 1:-1] = image[:, :, ::stride]
    right = image[:, :, 1::stride]
    columns[2, :, 1:-1, : right.shape[2]] = right
    return columns.reshape(_KERNEL * channels, height + 2, -1)


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

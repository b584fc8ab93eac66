"""Upscalers by the weights they bring: SRVGG ("Compact") and ESRGAN (RRDB, both spellings of its weights)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from function.engine.embedded.errors import ReportedError
from function.engine.embedded.networks.layers import (
    check_state,
    conv,
    enlarge,
    leaky_relu,
    pixel_shuffle,
    prelu,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from function.engine.embedded.networks.layers import State

    Floats: TypeAlias = NDArray[np.float32]

_GROWTH = 32  # spandrel, which ComfyUI loads upscalers with, fixes it for every ESRGAN
_DENSE_CONVS = 5
_RESIDUAL_SCALE = 0.2


@dataclass(frozen=True, slots=True)
class Upscaler:
    """A loaded upscaler.

    Attributes:
        scale: How many times larger its images are.
        run: One image (channels, height, width) in, the larger one out.
    """

    scale: int
    run: Callable[[Floats], Floats]


def upscaler_from(state: State) -> Upscaler:
    """The upscaler that these weights belong to.

    Raises:
        ReportedError: No known upscaler, or weights that don't fit theirs.
    """
    if "body.0.weight" in state and "body.1.weight" in state:
        return _srvgg(state)
    if "conv_first.weight" in state and "body.0.rdb1.conv1.weight" in state:
        state = _old_names(state)
    if "model.0.weight" in state and "model.1.sub.0.RDB1.conv1.0.weight" in state:
        return _esrgan(state)
    raise ReportedError("spandrel.__helpers.registry.UnsupportedModelError", "")


def _srvgg(state: State) -> Upscaler:
    last = max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    features, channels = state["body.0.weight"].shape[:2]
    scale = math.isqrt(len(state[f"body.{last}.weight"]) // channels)
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(0, last + 1, 2):
        source, target = channels if index == 0 else features, features if index < last else channels * scale**2
        shapes |= _conv_shapes(f"body.{index}", source, target)
        shapes |= {f"body.{index + 1}.weight": (features,)} if index < last else {}
    check_state("SRVGGNetCompact", state, shapes)
    return Upscaler(scale, partial(_run_srvgg, state, last, scale))


def _run_srvgg(state: State, last: int, scale: int, image: Floats) -> Floats:
    features = image
    for index in range(0, last, 2):
        features = prelu(conv(state, f"body.{index}", features), state[f"body.{index + 1}.weight"])
    return pixel_shuffle(conv(state, f"body.{last}", features), scale) + enlarge(image, scale)


def _esrgan(state: State) -> Upscaler:
    blocks = max(int(match[1]) for name in state if (match := re.match(r"model\.1\.sub\.(\d+)\.", name)))
    last = max(int(match[1]) for name in state if (match := re.match(r"model\.(\d+)\.weight$", name)))
    doublings = (last - 4) // 3
    check_state("RRDBNet", state, _esrgan_shapes(state, blocks, doublings))
    return Upscaler(2**doublings, partial(_run_esrgan, state, blocks, doublings))


def _esrgan_shapes(state: State, blocks: int, doublings: int) -> dict[str, tuple[int, ...]]:
    features, channels = state["model.0.weight"].shape[:2]
    last = 3 * doublings + 4
    shapes = _conv_shapes("model.0", channels, features)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for index in range(_DENSE_CONVS):
                target = _GROWTH if index < _DENSE_CONVS - 1 else features
                name = f"model.1.sub.{block}.RDB{dense}.conv{index + 1}.0"
                shapes |= _conv_shapes(name, features + _GROWTH * index, target)
    shapes |= _conv_shapes(f"model.1.sub.{blocks}", features, features)
    for index in (*range(3, 3 * doublings + 1, 3), last - 2):
        shapes |= _conv_shapes(f"model.{index}", features, features)
    return shapes | _conv_shapes(f"model.{last}", features, len(state[f"model.{last}.weight"]))


def _conv_shapes(name: str, source: int, target: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (target, source, 3, 3), f"{name}.bias": (target,)}


def _run_esrgan(state: State, blocks: int, doublings: int, image: Floats) -> Floats:
    first = conv(state, "model.0", image)
    features = first
    for block in range(blocks):
        features = _residual_block(state, f"model.1.sub.{block}", features)
    features = first + conv(state, f"model.1.sub.{blocks}", features)
    for doubling in range(doublings):
        features = leaky_relu(conv(state, f"model.{3 * doubling + 3}", enlarge(features, 2)))
    last = 3 * doublings + 4
    return conv(state, f"model.{last}", leaky_relu(conv(state, f"model.{last - 2}", features)))


def _residual_block(state: State, name: str, image: Floats) -> Floats:
    features = image
    for dense in (1, 2, 3):
        features = _dense_block(state, f"{name}.RDB{dense}", features)
    return features * _RESIDUAL_SCALE + image


def _dense_block(state: State, name: str, image: Floats) -> Floats:
    seen = image
    for index in range(1, _DENSE_CONVS):
        seen = np.concatenate([seen, leaky_relu(conv(state, f"{name}.conv{index}.0", seen))])
    return conv(state, f"{name}.conv{_DENSE_CONVS}.0", seen) * _RESIDUAL_SCALE + image


def _old_names(state: State) -> dict[str, Floats]:
    """Real-ESRGAN's names of the same weights, turned into ESRGAN's first ones."""
    blocks = 1 + max(int(match[1]) for name in state if (match := re.match(r"body\.(\d+)\.", name)))
    doublings = sum(f"conv_up{index}.weight" in state for index in (1, 2, 3))
    renamed = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    renamed |= {f"conv_up{index}": f"model.{3 * index}" for index in range(1, doublings + 1)}
    renamed |= {"conv_hr": f"model.{3 * doublings + 2}", "conv_last": f"model.{3 * doublings + 4}"}
    return {_old_name(name, renamed): value for name, value in state.items()}


def _old_name(name: str, renamed: dict[str, str]) -> str:
    layer, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", layer):
        return f"model.1.sub.{match[1]}.RDB{match[2]}.conv{match[3]}.0.{kind}"
    return f"{renamed.get(layer, layer)}.{kind}"

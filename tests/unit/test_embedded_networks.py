"""Scaling and networks of the embedded core, against plain definitions of the same arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from function.engine.embedded.errors import ReportedError
from function.engine.embedded.networks.layers import convolve, pixel_shuffle, read_state
from function.engine.embedded.networks.tiles import tile_count, upscale_tiled
from function.engine.embedded.networks.upscalers import Upscaler, upscaler_from
from function.engine.embedded.resample import METHODS, scale, to_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANDOM = np.random.default_rng(0)


def random(*shape: int) -> NDArray[np.float32]:
    """Values in 0..1."""
    return RANDOM.random(shape, dtype=np.float32)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int) -> None:
    """Each output pixel is the weighted sum of the 3x3 pixels around its place, zeros beyond the border."""
    image, weight, bias = random(2, 5, 6), random(4, 2, 3, 3), random(4)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    result = convolve(image, weight, bias, stride)
    assert result.shape == (4, -(-5 // stride), -(-6 // stride))
    for channel, y, x in np.ndindex(result.shape):
        window = padded[:, y * stride : y * stride + 3, x * stride : x * stride + 3]
        assert result[channel, y, x] == pytest.approx(float((window * weight[channel]).sum() + bias[channel]), rel=1e-5)


def test_convolution_in_strips() -> None:
    """An image larger than one strip gives the same as its parts."""
    image, weight = random(8, 700, 900), random(1, 8, 3, 3)
    whole = convolve(image, weight, None)
    np.testing.assert_allclose(whole[:, 300:400], convolve(image[:, 299:401], weight, None)[:, 1:-1], rtol=1e-5)


def test_pixel_shuffle() -> None:
    """Four channels become a 2x2 block, row by row."""
    image = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    assert pixel_shuffle(image, 2).tolist() == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(3, 50), (31, 7), (10, 12)])
def test_scaling_keeps_a_flat_image(method: str, size: tuple[int, int]) -> None:
    """A flat image stays flat at every size: the weights of each pixel add up to one."""
    flat = np.full((1, 10, 12, 3), 0.6, np.float32)
    scaled = scale(flat, *size, method)
    assert scaled.shape == (1, size[1], size[0], 3)
    np.testing.assert_allclose(scaled, 0.6, atol=1e-6)


def test_centre_crop() -> None:
    """A wide image loses its sides, a high one its top and bottom, equally."""
    image = np.zeros((1, 4, 8, 1), np.float32)
    image[:, :, 2:6] = 1
    assert scale(image, 4, 4, "nearest-exact", "center").min() == 1
    assert scale(image.transpose(0, 2, 1, 3), 4, 4, "nearest-exact", "center").min() == 1


def test_bytes_are_cut_off() -> None:
    """Values become bytes without rounding, those beyond 0..1 the nearest bound."""
    assert to_bytes(np.array([-1, 0, 0.999, 1, 2], np.float32)).tolist() == [0, 0, 254, 255, 255]


def test_tiles_of_a_pointwise_upscaler() -> None:
    """An upscaler that looks at one pixel gives the same in tiles as in one piece."""
    upscaler = Upscaler(2, lambda image: image.repeat(2, axis=1).repeat(2, axis=2))
    image = random(3, 70, 45)
    tiles: list[None] = []
    tiled = upscale_tiled(image, upscaler, lambda: tiles.append(None), tile=32, overlap=8)
    np.testing.assert_allclose(tiled, upscaler.run(image), rtol=1e-5)
    assert len(tiles) == tile_count(70, 45, tile=32, overlap=8) == 6


def test_a_tile_can_stop_the_rest() -> None:
    """What `after_tile` raises ends the upscale."""
    upscaler = Upscaler(1, lambda image: image)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        upscale_tiled(random(3, 40, 40), upscaler, stop, tile=32, overlap=8)


def test_unknown_weights() -> None:
    """Weights of no known upscaler are refused under the type name that ComfyUI reports."""
    with pytest.raises(ReportedError) as refused:
        upscaler_from({"some.weight": random(1)})
    assert refused.value.type_name.endswith("UnsupportedModelError")


def test_weights_that_do_not_fit() -> None:
    """Missing and misshapen weights are named, as torch names them."""
    state = {"body.0.weight": random(8, 3, 3, 3), "body.1.weight": random(7), "body.2.weight": random(12, 8, 3, 3)}
    with pytest.raises(ReportedError) as refused:
        upscaler_from(state)
    assert refused.value.type_name == "RuntimeError"
    text = str(refused.value)
    assert 'Missing key(s) in state_dict: "body.0.bias", "body.2.bias". ' in text
    assert "size mismatch for body.1.weight: copying a param with shape torch.Size([7]) from checkpoint" in text


def test_both_spellings_of_esrgan() -> None:
    """Real-ESRGAN's names of the weights give the same upscaler as ESRGAN's first ones."""
    old = _esrgan()
    renamed = {"model.0": "conv_first", "model.1.sub.1": "conv_body", "model.3": "conv_up1"}
    renamed |= {"model.5": "conv_hr", "model.7": "conv_last"}
    new = {}
    for name, value in old.items():
        layer, kind = name.rsplit(".", 1)
        inner = layer.removesuffix(".0").replace("model.1.sub.0.RDB", "body.0.rdb")
        new[f"{renamed.get(layer, inner)}.{kind}"] = value
    image = random(3, 6, 5)
    expected = upscaler_from(old)
    assert expected.run(image).shape == (3, 12, 10)
    np.testing.assert_array_equal(expected.run(image), upscaler_from(new).run(image))


def _esrgan() -> dict[str, NDArray[np.float32]]:
    """A small ESRGAN that doubles the size."""
    state: dict[str, NDArray[np.float32]] = {}

    def conv(name: str, source: int, target: int) -> None:
        state[f"{name}.weight"] = random(target, source, 3, 3) * 0.1
        state[f"{name}.bias"] = random(target)

    conv("model.0", 3, 4)
    for dense in (1, 2, 3):
        for index in range(5):
            conv(f"model.1.sub.0.RDB{dense}.conv{index + 1}.0", 4 + 32 * index, 32 if index < 4 else 4)
    for name, target in (("model.1.sub.1", 4), ("model.3", 4), ("model.5", 4), ("model.7", 3)):
        conv(name, 4, target)
    return state


def test_other_kinds_of_files(tmp_path: Path) -> None:
    """A pickle is refused without being opened."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"anything")
    with pytest.raises(ReportedError, match="safetensors files only"):
        read_state(path)

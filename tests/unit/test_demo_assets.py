"""The demo's photo, model and picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from demo.photo import write_photo
from demo.picture import before_after
from demo.upscaler import quadratic_taps, write_upscaler

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    """The demo's photo."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    write_photo(path)
    with Image.open(path) as image:
        image.load()
        return image


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """Pixels as colour, row, column; 0 to 1."""
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def convolve(x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """A 3x3 convolution with zero padding."""
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    shifted = [
        np.tensordot(weight[:, :, row, column], padded[:, row : row + height, column : column + width], 1)
        for row, column in np.ndindex(3, 3)
    ]
    return np.sum(shifted, axis=0) + bias[:, None, None]


def upscale(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """SRVGGNetCompact's forward pass, from the layout of its files alone."""
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    last = max(int(name.split(".")[1]) for name in tensors)
    y = x
    for number in range(0, last + 1, 2):
        y = convolve(y, tensors[f"body.{number}.weight"], tensors[f"body.{number}.bias"])
        if number < last:
            y = np.where(y < 0, y * tensors[f"body.{number + 1}.weight"][:, None, None], y)
    scale = round((y.shape[0] / 3) ** 0.5)
    height, width = x.shape[1:]
    y = y.reshape(3, scale, scale, height, width).transpose(0, 3, 1, 4, 2).reshape(3, height * scale, width * scale)
    return np.clip(y + x.repeat(scale, 1).repeat(scale, 2), 0, 1)


def test_photo_is_deterministic(tmp_path: Path) -> None:
    """The same size and seed give the same bytes; the seed changes the picture."""
    paths = [tmp_path / "new" / name for name in ("a.png", "b.png", "c.png")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write_photo(path, (64, 48), seed=seed)
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second
    assert first != other


def test_photo_looks_like_one(photo: Image.Image) -> None:
    """The photo has the size asked for, many colours, darks and lights, and neighbours that resemble each other."""
    pixels = to_array(photo)
    assert photo.size == (320, 240)
    assert len(np.unique(np.asarray(photo).reshape(-1, 3), axis=0)) > 10_000
    assert pixels.mean(axis=0).min() < 0.1
    assert pixels.mean(axis=0).max() > 0.9
    assert np.abs(np.diff(pixels, axis=2)).mean() < 0.05


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upscaler_enlarges_the_photo(photo: Image.Image, tmp_path: Path, scale: int) -> None:
    """The result is as close to bicubic enlargement as makes no visible difference (40 dB), borders included."""
    write_upscaler(tmp_path / "model.safetensors", scale)
    result = upscale(tmp_path / "model.safetensors", to_array(photo))
    expected = to_array(photo.resize((320 * scale, 240 * scale), Image.Resampling.BICUBIC))
    error = result - expected
    assert 10 * np.log10(1 / np.mean(error**2)) > 40
    assert np.abs(error[:, [0, -1], :]).max() < 0.05
    assert np.abs(error[:, :, [0, -1]]).max() < 0.05


def test_upscaler_keeps_colours(photo: Image.Image, tmp_path: Path) -> None:
    """The mean of each colour stays, and a plain area stays as it is up to its borders."""
    path = tmp_path / "new" / "model.safetensors"
    write_upscaler(path)
    pixels = to_array(photo)
    np.testing.assert_allclose(upscale(path, pixels).mean(axis=(1, 2)), pixels.mean(axis=(1, 2)), atol=0.001)
    for level in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(upscale(path, np.full((3, 4, 5), level, np.float32)), level, atol=0.001)


def test_upscaler_is_a_compact_network(tmp_path: Path) -> None:
    """The file has the names, shapes and half precision by which loaders know the architecture."""
    path = tmp_path / "model.safetensors"
    write_upscaler(path)
    tensors = load_file(path)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float16"}
    names = {f"body.{number}.weight" for number in range(9)} | {f"body.{number}.bias" for number in range(0, 9, 2)}
    assert set(tensors) == names
    shapes = [tensors[f"body.{number}.weight"].shape for number in (0, 1, 2, 8)]
    assert shapes == [(22, 3, 3, 3), (22,), (22, 22, 3, 3), (12, 22, 3, 3)]
    assert path.stat().st_size < 40_000


def test_taps_are_interpolation() -> None:
    """The taps of each part sum to one and read a straight line where the part's centre is."""
    for scale in (2, 3, 4):
        for part, taps in enumerate(quadratic_taps(scale)):
            assert sum(taps) == pytest.approx(1)
            assert taps[2] - taps[0] == pytest.approx((part + 0.5) / scale - 0.5)


def test_before_after_shows_both(tmp_path: Path) -> None:
    """Input and result stand side by side at the same size, with a detail of each below."""
    Image.new("RGB", (100, 80), "red").save(tmp_path / "before.png")
    Image.new("RGB", (200, 160), "lime").save(tmp_path / "after.png")
    before_after(tmp_path / "before.png", tmp_path / "after.png", tmp_path / "new" / "out.png")
    with Image.open(tmp_path / "new" / "out.png") as sheet:
        quarters = [sheet.getpixel((sheet.width * x // 4, sheet.height * y // 4)) for y in (1, 3) for x in (1, 3)]
        colours = {colour: count for count, colour in sheet.getcolors(maxcolors=10_000)}
    assert quarters == [(255, 0, 0), (0, 255, 0)] * 2
    assert colours[255, 0, 0] == colours[0, 255, 0] > 2 * 200 * 160 * 0.95

"""A synthetic photograph: a lake at sunset, with fine detail and soft edges, so that upscaling is worth a look."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.float64]

OVERSAMPLING = 3  # painted this much larger, then averaged: edges become soft as in a lens
SHORE = 0.63  # where the water begins, as part of the height
SUN = (0.63, 0.47)

WARM = np.array([1.0, 0.66, 0.36])
DARK = np.array([0.045, 0.06, 0.075])


def write_photo(path: Path, size: tuple[int, int] = (320, 240), *, seed: int = 7) -> None:
    """Write the photograph as PNG; the same size and seed give the same picture. Folders are made."""
    rng = np.random.default_rng(seed)
    width, height = size
    large = _paint(width * OVERSAMPLING, height * OVERSAMPLING, rng)
    pixels = large.reshape(height, OVERSAMPLING, width, OVERSAMPLING, 3).mean(axis=(1, 3))
    pixels += rng.normal(0, 0.007, (height, width, 1)) + rng.normal(0, 0.003, pixels.shape)  # film grain
    path.parent.mkdir(parents=True, exist_ok=True)
    _to_image(pixels).save(path, format="PNG")


def _paint(width: int, height: int, rng: np.random.Generator) -> Pixels:
    v, u = np.mgrid[0:height, 0:width]
    u, v = (u + 0.5) / width, (v + 0.5) / height
    scene = _sky(u, v, rng)
    _hills(scene, u, v, rng)
    _trees(scene, u, v, rng)
    _water(scene, u, v, rng)
    corners: Pixels = 1.04 - 0.5 * ((u - 0.5) ** 2 + (v - 0.5) ** 2)  # a lens darkens them
    return _drawn(scene, rng) * corners[..., None]


def _noise(shape: tuple[int, int], cells: tuple[float, float], rng: np.random.Generator, octaves: int = 5) -> Pixels:
    """Fractal noise, about -1 to 1; `cells` is how many of its largest features fit down and across."""
    total = np.zeros(shape)
    for octave in range(octaves):
        grid = [max(2, round(count * 2**octave) + 1) for count in cells]
        layer = Image.fromarray(rng.uniform(-1, 1, grid).astype(np.float32))
        total += np.asarray(layer.resize(shape[::-1], Image.Resampling.BICUBIC)) / 2**octave
    return total / 1.4


def _blend(below: Pixels, colour: Pixels, alpha: Pixels) -> Pixels:
    return below + (colour - below) * alpha[..., None]


def _smoothstep(low: float, high: float, x: Pixels) -> Pixels:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _sky(u: Pixels, v: Pixels, rng: np.random.Generator) -> Pixels:
    stops = np.array([[0.13, 0.24, 0.47], [0.36, 0.43, 0.62], [0.86, 0.62, 0.56], [1.0, 0.74, 0.44]])
    at = np.array([0.0, 0.22, 0.44, 0.6])
    sky = np.stack([np.interp(v, at, stops[:, channel]) for channel in range(3)], axis=-1)
    distance = np.hypot((u - SUN[0]) * 4 / 3, v - SUN[1])
    clouds = _noise(v.shape, (7, 2.2), rng, octaves=6)
    cover = _smoothstep(0.05, 0.75, clouds) * (1 - _smoothstep(0.4, 0.56, v)) * 0.75
    lit = np.exp(-distance * 3.2)[..., None]
    sky = _blend(sky, np.array([0.43, 0.37, 0.5]) * (1 - lit) + np.array([1.0, 0.76, 0.55]) * lit, cover)
    sky += WARM * (0.55 * np.exp(-distance * 7) + 0.16 * np.exp(-distance * 2.2))[..., None]
    return _blend(sky, np.array([1.0, 0.96, 0.84]), 1 - _smoothstep(0.036, 0.04, distance))


def _hills(scene: Pixels, u: Pixels, v: Pixels, rng: np.random.Generator) -> None:
    """Four ranges, each nearer, lower, darker and rougher than the one before."""
    haze = np.array([0.93, 0.66, 0.52])
    for step, (level, rise) in enumerate([(0.47, 0.1), (0.53, 0.075), (0.575, 0.05), (0.605, 0.03)]):
        ridge = level - rise * _noise((2, u.shape[1]), (1, 2.5 + 1.5 * step), rng, octaves=7)[:1]
        texture = _noise(v.shape, (16, 9), rng, octaves=6)
        near = (step + 1) / 4
        colour = haze * (1 - near) + np.array([0.1, 0.155, 0.15]) * near
        slope = 1 + 0.34 * near * texture + 0.7 * (ridge - v)  # lighter where the sun still reaches
        mist = np.exp(-np.abs(v - SHORE) * 30) * 0.38 * (1 - 0.5 * near)
        shaded = _blend(colour * slope[..., None], WARM * 0.9, mist)
        np.copyto(scene, shaded, where=(v > ridge)[..., None])


def _trees(scene: Pixels, u: Pixels, v: Pixels, rng: np.random.Generator) -> None:
    """Firs along the shore: tall groups at both sides, low ones between."""
    height, width = v.shape
    for _ in range(150):
        x = rng.uniform(-0.02, 1.02)
        tall = (0.035 + 0.17 * max(abs(x - 0.52) - 0.14, 0) ** 0.8) * rng.uniform(0.55, 1.15)
        rows = slice(int((SHORE - tall) * height), int((SHORE + 0.004) * height))
        columns = slice(max(0, int((x - tall) * width)), max(0, int((x + tall) * width)))
        down = np.clip((v[rows, columns] - SHORE) / tall + 1, 0, 1)
        branches = 0.62 + 0.38 * (down * rng.uniform(6, 10) % 1)
        mask = np.abs(u[rows, columns] - x) < tall * 0.15 * (0.05 + down) * branches
        light = rng.uniform(0.6, 1.5) + 0.9 * np.exp(-abs(x - SUN[0]) * 9)
        np.copyto(scene[rows, columns], DARK * light, where=mask[..., None])


def _water(scene: Pixels, u: Pixels, v: Pixels, rng: np.random.Generator) -> None:
    """What stands above the shore, upside down, drawn out by waves that grow towards the viewer."""
    height, width = v.shape
    shore = round(SHORE * height)
    depth = (np.arange(height - shore) + 0.5) / (height - shore)
    waves = _noise((height - shore, width), (42, 5), rng, octaves=4)
    swell = np.interp(np.sqrt(depth), np.linspace(0, 1, 40), rng.uniform(-1, 1, 40))[:, None]
    shift = (waves + 0.8 * swell) * (0.002 + 0.03 * depth[:, None]) * height
    rows = np.clip(shore - 1 - (depth[:, None] * (height - shore) * 1.25 + shift), 0, shore - 1).astype(int)
    columns = np.clip(np.arange(width) + 0.35 * shift, 0, width - 1).astype(int)
    mirrored = np.clip(scene[rows, columns], 0, 1) * np.array([0.81, 0.77, 0.82]) * (0.96 - 0.3 * depth[:, None, None])
    path = np.exp(-(((u[shore:] - SUN[0]) / (0.02 + 0.075 * depth[:, None])) ** 2))
    glitter = path * _smoothstep(0.15, 0.8, waves + 0.25) * (0.75 - 0.4 * depth[:, None])
    scene[shore:] = _blend(mirrored, np.array([1.0, 0.86, 0.62]), glitter)
    edge = np.exp(-np.abs(v - SHORE) * 420)
    scene[:] = _blend(scene, np.array([0.95, 0.72, 0.52]), 0.35 * edge)


def _drawn(scene: Pixels, rng: np.random.Generator) -> Pixels:
    """A sailing boat with its reflection, birds, and reeds in the foreground."""
    image = _to_image(scene)
    draw = ImageDraw.Draw(image, "RGBA")
    _boat(draw, image.size)
    _birds(draw, image.size)
    _reeds(draw, image.size, rng)
    return np.asarray(image, dtype=np.float64) / 255


def _boat(draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    width, height = size
    parts = [  # in units of the boat's length, upwards from the water line
        ([(-0.5, 0.1), (0.55, 0.13), (0.42, 0.0), (-0.4, 0.0)], (38, 26, 30)),
        ([(0.02, 0.16), (0.05, 1.3), (-0.46, 0.17)], (250, 226, 196)),
        ([(0.09, 0.17), (0.07, 1.16), (0.47, 0.18)], (226, 164, 128)),
        ([(0.03, 0.1), (0.03, 1.36), (0.065, 1.36), (0.065, 0.1)], (58, 40, 40)),
    ]
    x, y, length = 0.33 * width, 0.735 * height, 0.115 * width
    for points, colour in parts:
        for up, alpha in ((-0.62, 105), (1.0, 255)):
            draw.polygon([(x + length * px, y - length * py * up) for px, py in points], fill=(*colour, alpha))
    for ripple in range(7):
        at, reach = y + (0.06 + 0.1 * ripple) * length, (0.52 - 0.03 * ripple) * length
        draw.line([(x - reach, at), (x + reach * 0.9, at)], fill=(255, 214, 170, 70), width=max(1, height // 360))


def _birds(draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    width, height = size
    for u, v, span in ((0.2, 0.2, 0.03), (0.26, 0.235, 0.024), (0.235, 0.155, 0.02), (0.315, 0.19, 0.018)):
        x, y, wing = u * width, v * height, span * width
        outline = [(-1, -0.34), (-0.5, -0.42), (0, 0), (0.5, -0.46), (1, -0.3), (0.5, -0.3), (0, 0.16), (-0.5, -0.27)]
        draw.polygon([(x + wing * px, y + wing * py) for px, py in outline], fill=(34, 32, 48, 235))


def _reeds(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: np.random.Generator) -> None:
    width, height = size
    right, left = 1 - np.abs(rng.normal(0, 0.13, 50)), np.abs(rng.normal(0, 0.07, 20))
    for number, x in enumerate(np.concatenate([right, left]) * width):
        tall, lean = height * rng.uniform(0.08, 0.3), width * rng.normal(0.012, 0.02)
        bend = [(x + lean * t * t, height - tall * t) for t in np.linspace(0, 1, 12)]
        shade = int(rng.integers(12, 40))
        draw.line(bend, fill=(shade + 8, shade + 6, shade), width=max(1, round(height / 420)), joint="curve")
        if number % 3 == 0:
            tip, head = bend[-1], height * 0.011
            draw.ellipse([tip[0] - head / 3, tip[1] - head, tip[0] + head / 3, tip[1] + head * 1.6], fill=(48, 30, 22))


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))

"""Bars of GB/s and CPU-s/GB, drawn with Pillow."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Protocol

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WIDTH, MARGIN, LABEL, BAR, GAP = 1200, 40, 330, 22, 14
COLOURS = ("#1f77b4", "#ff7f0e", "#7f7f7f", "#bcbd22")
QUANTITIES = {"gb_per_second": "GB/s, more is better", "cpu_seconds_per_gb": "CPU-s/GB, less is better"}
FONT = ImageFont.load_default(17)
SMALL = ImageFont.load_default(14)


class Measured(Protocol):
    """What a bar needs of a run."""

    source: str
    target: str
    gb_per_second: float
    cpu_seconds_per_gb: float


def draw(path: Path, runs: Mapping[str, Sequence[Measured]]) -> None:
    """Write a PNG: for each source and target one bar per way, the median of its runs.

    Args:
        path: File to write.
        runs: Runs by way.
    """
    places = sorted({(run.source, run.target) for own in runs.values() for run in own})
    height = 2 * MARGIN + 60 + len(places) * (len(runs) * BAR + GAP)
    image = Image.new("RGB", (WIDTH, height), "white")
    canvas = ImageDraw.Draw(image)
    draw_legend(canvas, list(runs))
    width = (WIDTH - LABEL - 2 * MARGIN) // 2
    for column, (quantity, title) in enumerate(QUANTITIES.items()):
        left = LABEL + column * (width + MARGIN)
        medians = {
            (place, way): statistics.median(getattr(run, quantity) for run in own if (run.source, run.target) == place)
            for place in places
            for way, own in runs.items()
        }
        scale = (width - 60) / max(medians.values())
        canvas.text((left, MARGIN + 30), title, "black", FONT)
        for row, place in enumerate(places):
            top = MARGIN + 60 + row * (len(runs) * BAR + GAP)
            if column == 0:
                canvas.text((MARGIN, top + BAR), f"{place[0]}\nto {place[1]}", "black", FONT)
            for index, way in enumerate(runs):
                value, y = medians[place, way], top + index * BAR
                canvas.rectangle((left, y, left + max(1, value * scale), y + BAR - 4), COLOURS[index])
                canvas.text((left + value * scale + 6, y), f"{value:.2f}", "black", SMALL)
    image.save(path, optimize=True)


def draw_legend(canvas: ImageDraw.ImageDraw, ways: list[str]) -> None:
    """What the colours mean."""
    for index, way in enumerate(ways):
        left = LABEL + index * 210
        canvas.rectangle((left, 22, left + 16, 38), COLOURS[index])
        canvas.text((left + 24, 20), way, "black", FONT)

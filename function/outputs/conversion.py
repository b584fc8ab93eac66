"""Images of a job in another format, by Pillow, with the options that comfyui-api has for sharp.

Options that Pillow knows nothing of are accepted and have no effect: `trellisQuantisation`, `overshootDeringing`,
`quantisationTable`, `smartSubsample` and `preset` change how small or how well a file is encoded, never what it shows.
`mozjpeg` and `optimizeScans` give a progressive file, `nearLossless` a lossless one.

Converted files carry no metadata but a colour profile: neither workflow nor EXIF, whose rotation is applied. A JPEG has
no alpha; it lies on black, as libvips puts it. Animations stay animated in WebP and PNG; a JPEG is their first frame.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from function.errors import StorageUnavailableError
from function.outputs.reading import DiskFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    from function.handover import Conversion
    from function.outputs.reading import EngineFileSource

_SIXTEEN_TO_EIGHT_BITS = 1 / 256


class NotAnImageError(Exception):
    """A file can't be converted; says why."""


class Converter:
    """Converts the images of one job, one at a time, into files of its own; each once, while it stays what it is.

    Args:
        conversion: What is wanted.
        directory: Where the files go; made when there is one, and whoever gave it removes it.
    """

    def __init__(self, conversion: Conversion, directory: Path) -> None:
        self._conversion = conversion
        self._directory = directory
        self._lock = threading.Lock()
        self._done: dict[str, tuple[object, ...]] = {}

    def name_of(self, name: str) -> str:
        """What a file is called when it is converted; one that is no image keeps its name."""
        return self._conversion.name_of(name)

    def open(self, name: str, source: EngineFileSource) -> EngineFileSource:
        """The converted file, or the source itself if its name is that of no image.

        Args:
            name: The source's name, which no other file of the job has.
            source: The file; closed when the converted one is returned.

        Raises:
            NotAnImageError: It is no image, or a larger one than Pillow opens or the format has.
            StorageUnavailableError: The converted file can't be written.
        """
        if not self._conversion.applies_to(name):
            return source
        with self._lock:
            path = self._directory / self.name_of(name)
            if self._done.get(name) != source.version:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f"{path.name}.part")  # the one before may still be read
                with part.open("wb") as target:
                    _convert(source, target, self._conversion)
                part.replace(path)
                self._done[name] = source.version
            source.close()
            return DiskFile(path, version=source.version)


def _convert(source: EngineFileSource, target: BinaryIO, conversion: Conversion) -> None:
    try:
        with Image.open(source.whole()) as image:
            save_image(image, target, conversion)
    except Image.DecompressionBombError:
        raise NotAnImageError("has more pixels than are converted") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's own have no errno
        if isinstance(error, OSError) and error.errno:
            raise StorageUnavailableError(f"a converted file can't be written: {error.strerror}") from error
        raise NotAnImageError(f"can't be read as an image or not be written as {conversion.format}") from error


def save_image(image: Image.Image, target: BinaryIO, conversion: Conversion) -> None:
    """Write an image in another format."""
    kind = "JPEG" if conversion.format in {"jpeg", "jpg"} else conversion.format.upper()
    options = _OPTIONS[kind](conversion.options) | {"icc_profile": image.info.get("icc_profile")}
    if kind != "JPEG" and getattr(image, "is_animated", False):
        image.save(target, kind, save_all=True, **options, **_animation(image))
        return
    still = ImageOps.exif_transpose(image)
    still.info = {name: value for name, value in still.info.items() if name == "transparency"}  # the rest is metadata
    _TONES[kind](still).save(target, kind, **options)


def _animation(image: Image.Image) -> dict[str, Any]:
    """How long each frame is shown, in ms; Pillow would give all of them the time of the last one."""
    durations = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        image.load()
        durations.append(int(image.info.get("duration", 0)))
    image.seek(0)
    return {"duration": durations, "loop": image.info.get("loop", 0)}


def _opaque(image: Image.Image) -> Image.Image:
    image = _eight_bits(image)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    image = _eight_bits(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with eight bits of a grey that has sixteen: Pillow would cut it off at white instead of scaling it."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * _SIXTEEN_TO_EIGHT_BITS).convert("L")


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


_TONES = {"JPEG": _opaque, "WEBP": _with_alpha, "PNG": _as_it_is}


def _jpeg(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "quality": round(options["quality"]),
        "subsampling": options["chromaSubsampling"],
        "optimize": options["optimizeCoding"],
        "progressive": options["progressive"] or options["optimizeScans"] or options["mozjpeg"],
    }


def _webp(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "quality": options["quality"],
        "alpha_quality": options["alphaQuality"],
        "lossless": options["lossless"] or options["nearLossless"],
        "method": options["effort"],
    }


def _png(_options: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_OPTIONS = {"JPEG": _jpeg, "WEBP": _webp, "PNG": _png}

"""Conversion of images: what comes out, and what each option does."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageChops, JpegImagePlugin, PngImagePlugin

from function.handover import Conversion
from function.http.prompt_request import JpegOptions, WebpOptions
from function.outputs.conversion import save_image

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULTS = {
    "jpeg": JpegOptions().model_dump(),
    "jpg": JpegOptions().model_dump(),
    "webp": WebpOptions().model_dump(),
    "png": {},
}


def converted_bytes(image: Image.Image, format_: str, **options: Any) -> bytes:
    """A converted image; options that are not given have their defaults."""
    target = io.BytesIO()
    save_image(image, target, Conversion(format_, DEFAULTS[format_] | options))
    return target.getvalue()


def converted(image: Image.Image, format_: str, **options: Any) -> Image.Image:
    """The same, opened."""
    return Image.open(io.BytesIO(converted_bytes(image, format_, **options)))


def written(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    """An image as it is read from a file."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return Image.open(target)


def colours(mode: str = "RGB") -> Image.Image:
    """A picture with edges, gradients and saturated colours."""
    red, green = Image.linear_gradient("L"), Image.radial_gradient("L")
    blue = red.rotate(90).point([0, 255] * 128)
    picture = Image.merge("RGB", (red, green, blue)).resize((96, 64))
    if mode == "RGBA":
        picture.putalpha(green.resize((96, 64)))
    return picture.convert(mode)


def _channels(image: Image.Image, mode: str) -> Image.Image:
    return image.convert("RGBA").getchannel("A") if mode == "A" else image.convert(mode)


def difference(one: Image.Image, other: Image.Image, mode: str = "RGB") -> float:
    """The mean difference of two images' channels."""
    histogram = ImageChops.difference(*(_channels(image, mode) for image in (one, other))).histogram()
    bands = len(mode)
    return sum(value % 256 * count for value, count in enumerate(histogram)) / (bands * one.width * one.height)


@pytest.mark.parametrize(("format_", "kind"), [("jpeg", "JPEG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_each_format_shows_the_same_picture(format_: str, kind: str) -> None:
    """In its own kind of file, whatever the source's."""
    picture = Image.linear_gradient("L").resize((96, 64))
    image = converted(written(picture.convert("RGB")), format_)
    assert (image.format, image.size) == (kind, (96, 64))
    assert difference(image, picture) < 2


def test_a_jpeg_lies_on_black_where_the_image_is_transparent() -> None:
    """As libvips flattens: alpha is blended, not cut off."""
    picture = Image.new("RGBA", (16, 16), (200, 100, 50, 128))
    pixel = converted(written(picture), "jpeg").convert("RGB").getpixel((8, 8))
    assert isinstance(pixel, tuple)
    assert all(abs(found - wanted) <= 3 for found, wanted in zip(pixel, (100, 50, 25), strict=True))


def test_webp_and_png_keep_transparency() -> None:
    """Also that of a palette."""
    palette = colours("RGBA").convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for image in (colours("RGBA"), palette):
        assert converted(written(image), "webp").mode == "RGBA"
        assert converted(written(image), "png").has_transparency_data
        assert difference(converted(written(image), "webp", lossless=True), written(image), "A") == 0


def test_sixteen_bits_become_eight_of_the_same_brightness() -> None:
    """They are scaled, not cut off at white."""
    picture = Image.new("I;16", (8, 8), 32_768)
    for format_ in ("jpeg", "webp"):
        pixel = converted(written(picture), format_).convert("L").getpixel((4, 4))
        assert isinstance(pixel, int)
        assert abs(pixel - 128) <= 2
    assert converted(written(picture), "png").getpixel((4, 4)) == 32_768


@pytest.mark.parametrize("format_", ["jpeg", "webp", "png"])
def test_the_workflow_inside_a_file_is_left_out_and_its_colour_profile_is_kept(format_: str) -> None:
    """ComfyUI writes both workflow and prompt into each PNG."""
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", '{"1": "s3cret"}')
    data = converted_bytes(written(colours(), pnginfo=text, icc_profile=b"a profile"), format_)
    assert b"s3cret" not in data
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == b"a profile"


def test_a_rotation_that_only_the_metadata_know_is_applied() -> None:
    """The converted file is shown as the source was, without EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = converted(written(colours(), "JPEG", exif=exif), "webp")
    assert image.size == (64, 96)
    assert not image.getexif()


def animation(kind: str) -> Image.Image:
    """Three frames, shown for 100, 200 and 300 ms."""
    first, *others = [Image.new("RGB", (16, 8), colour) for colour in ("red", "green", "blue")]
    return written(first, kind, save_all=True, append_images=others, duration=[100, 200, 300], loop=0)


@pytest.mark.parametrize("source", ["PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("format_", ["webp", "png"])
def test_animations_stay_animated(source: str, format_: str) -> None:
    """Every frame, with its own time."""
    image = converted(animation(source), format_)
    assert getattr(image, "n_frames", 1) == 3
    durations, frames = [], []
    for number in range(3):
        image.seek(number)
        image.load()
        durations.append(image.info["duration"])
        frames.append(image.convert("RGB").getpixel((8, 4)))
    assert durations == [100, 200, 300]
    assert [max(range(3), key=frame.__getitem__) for frame in frames] == [0, 1, 2]


def test_a_jpeg_of_an_animation_is_its_first_frame() -> None:
    """JPEG knows no frames."""
    assert difference(converted(animation("GIF"), "jpeg"), Image.new("RGB", (16, 8), "red")) < 3


def test_quality_is_honoured() -> None:
    """Less of it is a smaller file."""
    for format_ in ("jpeg", "webp"):
        small, large = (len(converted_bytes(colours(), format_, quality=quality)) for quality in (10, 95))
        assert small < large


@pytest.mark.parametrize("option", ["progressive", "optimizeScans", "mozjpeg"])
def test_a_jpeg_is_progressive_if_that_is_wanted(option: str) -> None:
    """Mozjpeg and optimizeScans imply it, as in sharp."""
    assert "progressive" in converted(colours(), "jpeg", **{option: True}).info
    assert "progressive" not in converted(colours(), "jpeg").info


@pytest.mark.parametrize(("wanted", "sampling"), [("4:4:4", 0), ("4:2:0", 2)])
def test_chroma_subsampling_is_honoured(wanted: str, sampling: int) -> None:
    """As the file itself says."""
    assert JpegImagePlugin.get_sampling(converted(colours(), "jpeg", chromaSubsampling=wanted)) == sampling


def test_optimised_coding_is_smaller_and_the_same_picture() -> None:
    """Huffman tables of the file's own."""
    plain, optimised = (converted_bytes(colours(), "jpeg", optimizeCoding=wanted) for wanted in (False, True))
    assert len(optimised) < len(plain)
    assert difference(Image.open(io.BytesIO(plain)), Image.open(io.BytesIO(optimised))) == 0


@pytest.mark.parametrize("option", ["lossless", "nearLossless"])
def test_lossless_webp_is_the_same_to_the_bit(option: str) -> None:
    """Pillow has no near-lossless mode, so that is lossless."""
    assert difference(converted(colours(), "webp", **{option: True}), colours()) == 0
    assert difference(converted(colours(), "webp"), colours()) > 0


def test_alpha_quality_and_effort_are_honoured() -> None:
    """Each changes the file."""
    picture = colours("RGBA")
    assert len(converted_bytes(picture, "webp", alphaQuality=1)) < len(converted_bytes(picture, "webp"))
    assert converted_bytes(picture, "webp", effort=0) != converted_bytes(picture, "webp", effort=6)


@pytest.mark.parametrize(
    ("format_", "option", "value"),
    [
        ("jpeg", "trellisQuantisation", True),
        ("jpeg", "overshootDeringing", True),
        ("jpeg", "quantisationTable", 3),
        ("webp", "smartSubsample", True),
        ("webp", "preset", "drawing"),
    ],
)
def test_what_pillow_knows_nothing_of_has_no_effect(format_: str, option: str, value: object) -> None:
    """The list in the module's documentation is complete and true."""
    assert converted_bytes(colours(), format_, **{option: value}) == converted_bytes(colours(), format_)


@pytest.mark.parametrize("make", [lambda: colours("L"), lambda: colours("1"), lambda: colours("CMYK")])
@pytest.mark.parametrize("format_", ["jpeg", "webp"])
def test_other_kinds_of_pixels_are_converted(make: Callable[[], Image.Image], format_: str) -> None:
    """Grey, black and white, print colours."""
    assert difference(converted(make(), format_), make()) < 12

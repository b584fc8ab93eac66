"""Which values of a workflow are files, and what is in those that come inside it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from function.errors import InputRefusedError
from function.inputs.inline import decode, inline_extension, is_base64_file
from function.inputs.magic import extension_of
from function.inputs.media import Media, media_inputs, with_values, without_lists
from function.models.references import model_references
from function.validation.definitions import parse_definitions
from tests.support.pictures import picture, to_base64

if TYPE_CHECKING:
    from function.workflow import Workflow


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node."""
    return {"class_type": class_type, "inputs": inputs}


def found(workflow: Workflow, object_info: dict[str, Any] | None = None) -> list[Media]:
    """The files of a workflow; as the engine declares its nodes, if it is given."""
    definitions = None if object_info is None else parse_definitions(object_info, {})
    return list(media_inputs(workflow, definitions))


@pytest.mark.parametrize(
    ("class_type", "name", "kind"),
    [
        ("LoadImage", "image", "image"),
        ("LoadImageMask", "image", "image"),
        ("LoadVideo", "file", "video"),
        ("LoadVideo", "video", "video"),
        ("LoadAudio", "audio", "audio"),
        ("LoadLatent", "latent", "latent"),
        ("VHS_LoadVideo", "video", "video"),
        ("VHS_LoadVideoFFmpegPath", "video", "video"),
        ("VHS_LoadAudioUpload", "audio", "audio"),
        ("VHS_LoadAudio", "audio_file", "audio"),
    ],
)
def test_loaders_of_files(class_type: str, name: str, kind: str) -> None:
    """Those of ComfyUI and of VideoHelperSuite; errors speak of the kind, and say where the input is."""
    (media,) = found({"7": node(class_type, **{name: "x"})})
    error = media.placed(InputRefusedError("no"))
    assert media.known
    assert error.message == f"Failed to download {kind} for node 7: no"
    assert error.details == {"location": f"prompt.7.inputs.{name}"}


def test_a_list_of_images_is_so_many_files() -> None:
    """And no link to another node, although a list of two looks like one."""
    workflow = {"1": node("VHS_LoadImages", directory=["a.png", "b.png"]), "a.png": node("X")}
    assert [(media.value, media.item, media.kind) for media in found(workflow)] == [
        ("a.png", 0, "images"),
        ("b.png", 1, "images"),
    ]
    assert without_lists(workflow)["1"]["inputs"] == {"directory": ""}
    second = found(workflow)[1]
    assert with_values(workflow, {second: "c.png"})["1"]["inputs"] == {"directory": ["a.png", "c.png"]}
    assert found({"1": node("VHS_LoadImages", directory=["2", 0])}) == []


def test_any_image_of_an_unknown_node_may_be_one() -> None:
    """Unless it is a link, or the node saves, or lists the value among its choices."""
    workflow = {
        "1": node("Custom", image="a.png"),
        "2": node("Custom", image=["1", 0]),
        "3": node("Custom", image="red"),
        "4": node("CustomSave", image="a.png", filename_prefix="x"),
        "5": node("V3", image="blue"),
    }
    info = {
        "Custom": {"input": {"required": {"image": [["red", "green"]]}}, "python_module": "custom_nodes.x"},
        "V3": {"input": {"required": {"image": ["COMBO", {"options": ["blue"]}]}}, "python_module": "custom_nodes.x"},
    }
    assert [(media.node_id, media.known) for media in found(workflow)] == [("1", False), ("3", False), ("5", False)]
    assert [media.node_id for media in found(workflow, info)] == ["1"]


def test_a_node_that_declares_a_text_takes_a_path() -> None:
    """One that declares a list takes a name below the input directory."""
    info = {"Custom": {"input": {"required": {"image": ["STRING", {}]}}, "python_module": "custom_nodes.x"}}
    workflow = {"1": node("Custom", image="a.png"), "2": node("VHS_LoadVideoPath", video="a.mp4")}
    assert [media.by_path for media in found(workflow, info)] == [True, True]
    assert [media.by_path for media in found(workflow)] == [False, True]


def test_a_text_that_only_begins_like_a_data_uri_is_a_text() -> None:
    """A prompt may say so; a whole data URI is a file wherever it stands."""
    workflow = {"1": node("CLIPTextEncode", text="data: a chart"), "2": node("Custom", x="data:image/png;base64,aGk=")}
    assert [media.node_id for media in found(workflow)] == ["2"]


def test_an_image_by_url_is_no_model() -> None:
    """Even if its name ends as a model's does."""
    workflow = {
        "1": node("LoadImage", image="https://host.example/a.bin"),
        "2": node("X", image="https://h.example/a.pt"),
    }
    assert model_references(workflow) == ()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "AVIF"])
def test_a_picture_in_base64_is_known_by_its_first_bytes(file_format: str) -> None:
    """In either alphabet, in lines, without its padding; its extension is that of what it is."""
    data = picture(file_format)
    lines = base64.encodebytes(data).decode()
    extension = {"JPEG": ".jpg"}.get(file_format, f".{file_format.lower()}")
    for text in (to_base64(data), base64.urlsafe_b64encode(data).decode(), lines, lines.rstrip("=\n")):
        assert is_base64_file(text)
        assert inline_extension(text) == extension
        assert decoded(text) == data


@pytest.mark.parametrize(
    "name",
    [
        *("photo.png", "cats/a.png", "example", "a" * 64, "0123456789abcdef0123456789abcdef", "/9j/", "/etc/passwd"),
        *("https://host.example/iVBORw0KGgoAAAANSUhEUgAAAAgAAAAG", "Qk" + "x" * 62, "SUQz" + "x" * 60, "ä" * 40),
    ],
)
def test_names_are_no_base64(name: str) -> None:
    """Nor is a text in its alphabet that would decode to no file."""
    assert not is_base64_file(name)


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (b"\0\0\0\x18ftypmp42", ".mp4"),
        (b"\0\0\0\x18ftypqt  ", ".mov"),
        (b"\0\0\0\x18ftypM4A ", ".m4a"),
        (b"\0\0\0\x18ftyp3gp5", ".3gp"),
        (b"\x1aE\xdf\xa3\x42\x82\x84webm", ".webm"),
        (b"\x1aE\xdf\xa3\x42\x82\x88matroska", ".mkv"),
        (b"RIFF\0\0\0\0WAVE", ".wav"),
        (b"RIFF\0\0\0\0AVI ", ".avi"),
        (b"ID3\x04\0", ".mp3"),
        (b"OggS", ".ogg"),
        (b"fLaC", ".flac"),
        (b"FLV\x01", ".flv"),
        (b"BMnothing", ""),
        (b"", ""),
    ],
)
def test_videos_and_sounds_are_known_by_their_first_bytes(head: bytes, extension: str) -> None:
    """Brands of containers tell them apart; two letters alone are no proof."""
    assert extension_of(head) == extension


@pytest.mark.parametrize("length", [0, 1, 2, 3, 786_431, 786_432, 786_433, 2_000_000])
def test_base64_is_decoded_piece_by_piece(length: int) -> None:
    """Wherever its end lies in the last piece."""
    data = b"\xff\xd8\xff" + bytes(range(256)) * (length // 256) + bytes(length % 256)
    for text in (to_base64(data), to_base64(data).rstrip("="), f"data:image/jpeg;base64,{to_base64(data)}"):
        assert decoded(text) == data


def test_the_first_bytes_count_more_than_a_media_type() -> None:
    """What a data URI says of itself is only believed where nothing better is known."""
    assert inline_extension(f"data:image/png;base64,{to_base64(picture('JPEG'))}") == ".jpg"
    assert inline_extension("data:image/png;base64,Y2F0") == ".png"


@pytest.mark.parametrize("text", ["data:image/png,cat", "data:;base64,c@t=", "/9j/" + "A" * 40 + "==AA", "a" * 41])
def test_broken_base64_is_refused(text: str) -> None:
    """In one line that quotes nothing of it."""
    with pytest.raises(InputRefusedError) as error:
        decoded(text)
    assert text not in error.value.message


def decoded(text: str) -> bytes:
    """All that is written."""
    content = bytearray()
    decode(text, write=content.extend)
    return bytes(content)

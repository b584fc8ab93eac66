"""Output files that are converted on their way, wherever they lie and wherever they go."""

from __future__ import annotations

import hashlib
import io
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from function.errors import NodeFailedError
from function.handover import Conversion
from function.http.prompt_request import WebpOptions
from function.outputs.files import OutputFolder, converter_of
from function.outputs.inline import InlineOutputs
from function.outputs.stored import StoredOutputs
from function.telemetry import ignore_progress
from tests.support.outputs import file_of_engine, served, written

if TYPE_CHECKING:
    from pathlib import Path

    from function.engine.results import EngineFile
    from function.job import Output
    from function.storage.objects import ObjectStore

__all__ = ["served"]

WEBP = Conversion("webp", WebpOptions().model_dump())


def folder_in(directory: Path) -> OutputFolder:
    """The outputs of job `j1`, as WebP."""
    return OutputFolder(directory, "j1", converter=converter_of(directory, "j1", WEBP))


def stored_by(store: ObjectStore, folder: OutputFolder, files: list[EngineFile], early: int = 0) -> tuple[Output, ...]:
    """What a stored job's outputs are, the first `early` of them begun while the run went on."""
    with StoredOutputs(store, folder, attempt=1, on_progress=ignore_progress) as outputs:
        outputs.begin(files[:early])
        return outputs.finish(files)


def test_the_caller_gets_converted_bytes_and_names_and_everything_else_as_it_is(tmp_path: Path) -> None:
    """Length and media type are those of what is delivered."""
    files = [written(tmp_path, "a.PNG"), written(tmp_path, "clip.mp4", content=b"a film"), written(tmp_path, "x.json")]
    folder = folder_in(tmp_path)
    with folder.removed_at_the_end(), InlineOutputs(folder) as outputs:
        image, film, document = outputs.finish(files)
    assert image.data is not None
    assert Image.open(io.BytesIO(image.data)).format == "WEBP"
    assert (image.filename, image.media_type, image.size_bytes) == ("a.webp", "image/webp", len(image.data))
    assert (film.filename, film.data) == ("clip.mp4", b"a film")
    assert document.filename == "x.json"
    assert list(tmp_path.iterdir()) == []


def test_stored_outputs_are_converted_while_the_run_goes_on(store: ObjectStore, tmp_path: Path) -> None:
    """What lies in storage is what the manifest says, under the converted name alone."""
    files = [written(tmp_path, f"{name}.png") for name in "ab"]
    outputs = stored_by(store, folder_in(tmp_path), files, early=1)
    keys = [info.key for info in store.list_objects("outputs/")]
    assert keys == ["outputs/j1/1/a.webp", "outputs/j1/1/b.webp"]
    for key, output in zip(keys, outputs, strict=True):
        data = store.get(key, max_bytes=output.size_bytes)
        assert hashlib.sha256(data).hexdigest() == output.sha256
        assert Image.open(io.BytesIO(data)).format == "WEBP"
    assert store.head(keys[0]).media_type == "image/webp"


def test_a_file_that_is_written_again_is_converted_again(store: ObjectStore, tmp_path: Path) -> None:
    """The conversion of what it was before does not count."""
    folder = folder_in(tmp_path)
    file = written(tmp_path, "a.png")
    with closing(folder.open(file)) as source:
        before = source.read()
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    written(tmp_path, "a.png", content=buffer.getvalue())
    (output,) = stored_by(store, folder, [file])
    assert (output.width, output.height) == (9, 9)
    assert store.get("outputs/j1/1/a.webp", max_bytes=10_000) != before


def test_files_that_come_through_the_engine_are_converted_too(served: OutputFolder) -> None:
    """Read whole, because an image can't be decoded from its beginning alone."""
    folder = OutputFolder(
        served.output_dir, "j1", view=served.view, converter=converter_of(served.output_dir, "j1", WEBP)
    )
    with folder.removed_at_the_end(), InlineOutputs(folder) as outputs:
        first, second = outputs.finish([file_of_engine("a.png", "j1"), file_of_engine("a.png", "j1/sub")])
    assert [output.path for output in (first, second)] == ["a.webp", "sub/a.webp"]
    assert first.data is not None
    assert Image.open(io.BytesIO(first.data)).format == "WEBP"


def test_an_image_that_is_none_fails_the_job_and_is_named(tmp_path: Path) -> None:
    """It is not delivered as something that it is not."""
    folder = folder_in(tmp_path)
    with (
        InlineOutputs(folder) as outputs,
        pytest.raises(NodeFailedError, match=r"node 9: reported 'a.png', which can't be read as an image"),
    ):
        outputs.finish([written(tmp_path, "a.png", content=b"no image")])


def test_an_image_of_very_many_pixels_is_refused(tmp_path: Path) -> None:
    """Its size is known before it is decoded."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    folder = folder_in(tmp_path)
    with InlineOutputs(folder) as outputs, pytest.raises(NodeFailedError, match="more pixels than are converted"):
        outputs.finish([written(tmp_path, "a.png", content=buffer.getvalue())])

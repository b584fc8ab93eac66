"""Input files in, output files out."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from function.engine.results import EngineFile
from function.errors import InputMissingError, InputRefusedError
from function.inputs import staged_inputs
from function.outputs import OutputFiles, output_directory
from function.telemetry import ignore_progress

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from function.storage.objects import ObjectStore
    from function.workflow import Workflow


@pytest.fixture
def input_dir(tmp_path: Path) -> Path:
    """The engine's input directory."""
    path = tmp_path / "input"
    path.mkdir()
    return path


def load_image(value: Any, class_type: str = "LoadImage", name: str = "image") -> Workflow:
    """A graph with one loader."""
    return {"1": {"class_type": class_type, "inputs": {name: value}}}


def stage(workflow: Workflow, input_dir: Path, uploads: ObjectStore) -> AbstractContextManager[Workflow]:
    """Stage the inputs of a job called j1."""
    return staged_inputs(workflow, job_id="j1", input_dir=input_dir, uploads=uploads, on_progress=ignore_progress)


@pytest.mark.parametrize("suffix", ["", " [input]"])
def test_an_input_is_brought_into_the_jobs_directory_and_removed_at_the_end(
    store: ObjectStore, input_dir: Path, suffix: str
) -> None:
    """The graph names it there, with its folders."""
    store.put("cats/ä b.png", b"cat")
    with stage(load_image(f"cats/ä b.png{suffix}"), input_dir, store) as staged:
        assert staged["1"]["inputs"]["image"] == "j1/cats/ä b.png"
        assert (input_dir / "j1" / "cats" / "ä b.png").read_bytes() == b"cat"
    assert list(input_dir.iterdir()) == []


def test_an_input_may_be_named_by_its_url(store: ObjectStore, input_dir: Path) -> None:
    """Only below the uploads' own URL."""
    store.put("a.png", b"cat")
    with stage(load_image(store.object_url("a.png")), input_dir, store) as staged:
        assert (input_dir / staged["1"]["inputs"]["image"]).read_bytes() == b"cat"


@pytest.mark.parametrize(
    ("class_type", "name"),
    [("LoadImageMask", "image"), ("LoadAudio", "audio"), ("LoadVideo", "file"), ("LoadLatent", "latent")],
)
def test_every_core_loader_of_files_is_served(store: ObjectStore, input_dir: Path, class_type: str, name: str) -> None:
    """Masks, sound, video and latents come the same way."""
    store.put("x.bin", b"x")
    with stage(load_image("x.bin", class_type, name), input_dir, store) as staged:
        assert staged["1"]["inputs"][name] == "j1/x.bin"


def test_a_data_uri_is_decoded_for_any_node(store: ObjectStore, input_dir: Path) -> None:
    """Its media type gives the extension."""
    uri = f"data:image/png;charset=binary;base64,{base64.b64encode(b'cat').decode()}"
    with stage(load_image(uri, "SomeCustomLoader", "picture"), input_dir, store) as staged:
        path = input_dir / staged["1"]["inputs"]["picture"]
        assert (path.name, path.read_bytes()) == ("inline-0.png", b"cat")


def test_other_strings_and_links_are_left_alone(store: ObjectStore, input_dir: Path) -> None:
    """A text that looks like a file name is none."""
    workflow = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": ["1", 0]}},
    }
    with stage(workflow, input_dir, store) as staged:
        assert staged == workflow


def test_a_missing_input_names_node_input_and_url(store: ObjectStore, input_dir: Path) -> None:
    """And nothing is left in the input directory."""
    with pytest.raises(InputMissingError) as error, stage(load_image("no.png"), input_dir, store):
        pass
    assert error.value.message.startswith(f"node 1, input image: no object {store.url}/no.png")
    assert list(input_dir.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        *("../a.png", "/a.png", "https://example.com/a.png", "s3://other/a.png", "file:///etc/passwd"),
        *("a.png [output]", "data:image/png,cat", "data:image/png;base64,c@t", "data:;base64,Y2F0"),
    ],
)
def test_inputs_from_elsewhere_and_broken_data_are_refused(store: ObjectStore, input_dir: Path, value: str) -> None:
    """No path, no other place, no half-understood URI."""
    with pytest.raises(InputRefusedError, match="node 1, input image: "), stage(load_image(value), input_dir, store):
        pass
    assert list(input_dir.iterdir()) == []


def written(output_dir: Path, name: str, subfolder: str = "j1", folder_type: str = "output") -> EngineFile:
    """A small image as the engine would have written it."""
    path = output_dir / subfolder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(path, "PNG")
    return EngineFile(node_id="9", kind="images", filename=name, subfolder=subfolder, folder_type=folder_type)


def test_outputs_are_stored_and_described(store: ObjectStore, tmp_path: Path) -> None:
    """Digest, size, dimensions and URL; the subfolder is the workflow's own, without the job's."""
    files = OutputFiles.of([written(tmp_path, "a.png", "j1/sub")], output_dir=tmp_path, job_id="j1")
    (output,) = files.store(store, attempt=2, on_progress=ignore_progress)
    stored = store.get("outputs/j1/2/sub/a.png", max_bytes=10_000)
    assert (output.url, output.subfolder) == (store.object_url("outputs/j1/2/sub/a.png"), "sub")
    assert (output.sha256, output.size_bytes) == (hashlib.sha256(stored).hexdigest(), len(stored))
    assert (output.width, output.height, output.media_type) == (3, 2, "image/png")
    assert output.data is None


def test_previews_are_no_outputs(tmp_path: Path) -> None:
    """Temporary files of the engine are left to it."""
    preview = written(tmp_path, "p.png", "", "temp")
    assert OutputFiles.of([preview], output_dir=tmp_path, job_id="j1").read() == ()


def test_an_image_that_is_none_has_no_dimensions(tmp_path: Path) -> None:
    """The file is an output all the same."""
    file = written(tmp_path, "a.png")
    (tmp_path / "j1" / "a.png").write_bytes(b"no image")
    (output,) = OutputFiles.of([file], output_dir=tmp_path, job_id="j1").read()
    assert (output.width, output.height, output.data) == (None, None, b"no image")


@pytest.mark.parametrize(("filename", "subfolder"), [("../../x", "j1"), ("/etc/passwd", ""), ("x", "../..")])
def test_an_output_outside_the_output_directory_is_refused(tmp_path: Path, filename: str, subfolder: str) -> None:
    """A custom node may report any name."""
    file = EngineFile(node_id="9", kind="images", filename=filename, subfolder=subfolder, folder_type="output")
    with pytest.raises(InputRefusedError, match="outside OUTPUT_DIR"):
        OutputFiles.of([file], output_dir=tmp_path / "out", job_id="j1").read()


def test_the_jobs_output_directory_is_removed_whatever_happens(tmp_path: Path) -> None:
    """Half-written outputs of a failed run go too."""
    with output_directory(tmp_path, "j1"):
        written(tmp_path, "a.png")
    assert list(tmp_path.iterdir()) == []

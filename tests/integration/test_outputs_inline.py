"""Output files of a run that stores nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from function.engine.results import EngineFile
from function.errors import InputRefusedError, NodeFailedError
from function.outputs.files import OutputFolder
from function.outputs.inline import InlineOutputs
from tests.support.outputs import file_of_engine, small_image, written

if TYPE_CHECKING:
    from pathlib import Path

    from function.job import Output


def test_outputs_of_a_job_that_stores_nothing_carry_their_bytes(tmp_path: Path) -> None:
    """The bytes say all; the subfolder is the workflow's own, without the job's."""
    file = written(tmp_path, "a.png", "j1/sub")
    with InlineOutputs(OutputFolder(tmp_path, "j1")) as outputs:
        outputs.begin([file])
        (output,) = outputs.finish([file])
    data = (tmp_path / "j1" / "sub" / "a.png").read_bytes()
    assert (output.data, output.size_bytes, output.media_type) == (data, len(data), "image/png")
    assert (output.subfolder, output.filename, output.url) == ("sub", "a.png", "")


def test_previews_are_no_outputs_beside_files_that_were_saved(tmp_path: Path) -> None:
    """Temporary files of the engine are left to it; a file of its input folder never is an output."""
    preview, saved = written(tmp_path, "p.png", "", folder_type="temp"), written(tmp_path, "a.png")
    assert [output.filename for output in read(tmp_path, preview, saved)] == ["a.png"]
    assert read(tmp_path, written(tmp_path, "i.png", "", folder_type="input")) == ()


def test_previews_are_the_outputs_of_a_run_that_saved_nothing(served: OutputFolder) -> None:
    """They lie in the engine's own folder, so they are read through it."""
    with InlineOutputs(served) as outputs:
        (output,) = outputs.finish([file_of_engine("p.png", folder_type="temp")])
    assert (output.data, output.filename, output.subfolder) == (small_image(), "p.png", "")


def test_a_file_that_is_not_in_the_output_directory_is_read_through_the_engine(served: OutputFolder) -> None:
    """As for an engine whose directory is not shared."""
    with InlineOutputs(served) as outputs:
        (output,) = outputs.finish([file_of_engine("a.png", "j1/sub")])
    assert (output.subfolder, output.data, output.size_bytes) == ("sub", small_image(), len(small_image()))


def test_only_outputs_on_the_disk_need_no_engine(served: OutputFolder) -> None:
    """Of all of them; a preview beside a saved file is no output."""
    here, there = written(served.output_dir, "b.png"), file_of_engine("a.png", "j1/sub")
    preview = file_of_engine("p.png", folder_type="temp")
    assert [served.has(files) for files in ([], [here], [here, preview])] == [True] * 3
    assert [served.has(files) for files in ([there], [here, there], [preview])] == [False] * 3
    assert [served.has([file_of_engine(name)]) for name in ("n" * 300, "a\0b", "..")] == [False] * 3


def test_an_engine_that_has_no_such_file_either(served: OutputFolder) -> None:
    """That is the node's failure."""
    with (
        InlineOutputs(served) as outputs,
        pytest.raises(NodeFailedError, match=r"reported 'gone\.png', which can't be"),
    ):
        outputs.finish([file_of_engine("gone.png")])


def test_an_animation_is_an_image_and_a_text_is_a_file(tmp_path: Path) -> None:
    """Media types go by the extension, the same on every machine."""
    first, second = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), "red")
    (tmp_path / "j1").mkdir()
    first.save(tmp_path / "j1" / "a.webp", save_all=True, append_images=[second])
    animation = EngineFile(node_id="8", kind="images", filename="a.webp", subfolder="j1", folder_type="output")
    outputs = read(tmp_path, animation, written(tmp_path, "t.txt", content="ä".encode()))
    assert [output.media_type for output in outputs] == ["image/webp", "text/plain"]


@pytest.mark.parametrize(
    ("filename", "subfolder"), [("../../x", "j1"), ("/etc/passwd", ""), ("x", "../.."), ("a\0b", "j1"), ("link", "")]
)
def test_an_output_outside_the_output_directory_is_refused(tmp_path: Path, filename: str, subfolder: str) -> None:
    """A custom node may report any name, and write a link to anywhere."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to("/etc/passwd")
    file = EngineFile(node_id="9", kind="images", filename=filename, subfolder=subfolder, folder_type="output")
    with pytest.raises(InputRefusedError, match="outside OUTPUT_DIR"):
        read(tmp_path / "out", file)


def test_a_reported_file_that_is_not_there_is_the_nodes_failure(tmp_path: Path) -> None:
    """The error names node and file."""
    file = EngineFile(node_id="9", kind="images", filename="gone.png", subfolder="j1", folder_type="output")
    with pytest.raises(
        NodeFailedError, match=r"node 9: reported 'gone\.png', which can't be read: there is no such file"
    ):
        read(tmp_path, file)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """One in the job's folder and one beside it, whose prefix the workflow computed, would have the same URL."""
    with pytest.raises(InputRefusedError, match=r"another node wrote 'a\.png' too"):
        read(tmp_path, written(tmp_path, "a.png", "j1"), written(tmp_path, "a.png", ""))


def test_the_jobs_output_directory_is_removed_whatever_happens(tmp_path: Path) -> None:
    """Half-written outputs of a failed run go too."""
    with OutputFolder(tmp_path, "j1").removed_at_the_end():
        written(tmp_path, "a.png")
    assert list(tmp_path.iterdir()) == []


def test_what_a_job_wrote_beside_its_folder_is_removed_too(tmp_path: Path) -> None:
    """A prefix that is computed leads there; what was there before, what lies outside and what is no output stay."""
    output_dir, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
    old, other = written(output_dir, "old.png", ""), written(output_dir, "other.png", "sub", folder_type="temp")
    os.utime(output_dir / "old.png", (0, 0))
    outside = written(elsewhere, "a.png", "")
    (output_dir / "link").symlink_to(elsewhere)
    folders = ("link", "../elsewhere", str(elsewhere), "a\0b", "none")
    hostile = [replace(outside, subfolder=folder) for folder in folders]
    with OutputFolder(output_dir, "j1").removed_at_the_end() as reported:
        reported += [old, other, *hostile, written(output_dir, "new.png", "sub"), written(output_dir, "new.png", "")]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["a.png", "old.png", "other.png"]


def read(output_dir: Path, *files: EngineFile) -> tuple[Output, ...]:
    """The outputs of a run of the job j1 that stores nothing."""
    with InlineOutputs(OutputFolder(output_dir, "j1")) as outputs:
        return outputs.finish(files)

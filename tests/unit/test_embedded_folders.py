"""Where the embedded core finds and puts files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from function.engine.embedded.errors import ReportedError
from function.engine.embedded.folders import Folders, folders_from, inside_or_none, save_path
from function.engine.embedded.options import parse_options

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Folders under a fresh base directory."""
    return folders_from(parse_options(["--base-directory", str(tmp_path)]))


def touch(path: Path) -> Path:
    """An empty file, with its parents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_model_names(folders: Folders, tmp_path: Path) -> None:
    """Names are relative, sorted, of model files only, from every directory of the folder, `.git` left out."""
    for name in ("loras/b.safetensors", "loras/sub/a.pt", "loras/notes.txt", "loras/.git/x.pt"):
        touch(tmp_path / "models" / name)
    touch(tmp_path / "output" / "loras" / "own.safetensors")
    assert folders.model_names("loras") == ["b.safetensors", "own.safetensors", "sub/a.pt"]


def test_missing_folder_has_no_names(folders: Folders) -> None:
    """A folder whose directory doesn't exist yet is empty."""
    assert folders.model_names("vae") == []


@pytest.mark.parametrize("name", ["../vae/secret.safetensors", "/etc/passwd", "none.safetensors"])
def test_model_path_outside(folders: Folders, tmp_path: Path, name: str) -> None:
    """A name that leads elsewhere finds nothing."""
    touch(tmp_path / "models" / "vae" / "secret.safetensors")
    with pytest.raises(FileNotFoundError, match="Model in folder 'loras' with filename"):
        folders.model_path("loras", name)


def test_old_directory_names(folders: Folders, tmp_path: Path) -> None:
    """Text encoders are found under ComfyUI's older name of the directory too."""
    path = touch(tmp_path / "models" / "clip" / "t5.safetensors")
    assert folders.model_path("text_encoders", "t5.safetensors") == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "input/a.png"),
        ("sub/a.png", "input/sub/a.png"),
        ("a.png [output]", "output/a.png"),
        ("a.png [temp]", "temp/a.png"),
        ("../a.png", None),
        ("/etc/passwd", None),
        ("..", None),
        ("a\0.png", None),
    ],
)
def test_annotated_path(folders: Folders, tmp_path: Path, name: str, expected: str | None) -> None:
    """An image's name may say which directory it lies in, and never leads outside it."""
    assert folders.annotated_path(name) == (None if expected is None else tmp_path / expected)


def test_inside_is_not_a_prefix(tmp_path: Path) -> None:
    """A sibling directory whose name begins like the root's is outside."""
    assert inside_or_none(tmp_path / "in", "../input/x") is None


def test_counter_follows_the_highest(tmp_path: Path) -> None:
    """Only files of exactly this prefix count."""
    for name in ("a_00003_.png", "a_00001_.png", "ab_00009_.png", "a_x_.png"):
        touch(tmp_path / name)
    assert save_path("a", tmp_path, 1, 1).counter == 4


def test_save_path_of_a_nested_prefix(tmp_path: Path) -> None:
    """Folders in the prefix become the subfolder and are made; sizes are filled in."""
    target = save_path("x/y/z_%width%x%height%_%nothing%", tmp_path, 3, 4)
    assert (target.subfolder, target.stem, target.counter) == ("x/y", "z_3x4_%nothing%", 1)
    assert (tmp_path / "x" / "y").is_dir()


@pytest.mark.parametrize("prefix", ["../evil", "/evil", "a/../../evil"])
def test_save_path_outside(tmp_path: Path, prefix: str) -> None:
    """A prefix that leads out of the output directory is refused, in ComfyUI's words and type."""
    with pytest.raises(ReportedError, match="Saving image outside the output folder is not allowed") as refused:
        save_path(prefix, tmp_path / "output", 1, 1)
    assert refused.value.type_name == "Exception"


def test_extra_model_paths(tmp_path: Path) -> None:
    """A file of extra paths adds directories, in front where it is the default, under today's folder names."""
    config = tmp_path / "extra.yaml"
    config.write_text(json.dumps({"s": {"base_path": "more", "is_default": True, "loras": "l", "unet": "u\nv"}}))
    folders = folders_from(
        parse_options(["--base-directory", str(tmp_path), "--extra-model-paths-config", str(config)])
    )
    assert folders.models["loras"][0] == tmp_path / "more" / "l"
    assert {tmp_path / "more" / "u", tmp_path / "more" / "v"} <= set(folders.models["diffusion_models"])


@pytest.mark.parametrize("text", ["a: b", "[1]", '{"s": 1}'])
def test_extra_model_paths_in_yaml(tmp_path: Path, text: str) -> None:
    """What is no JSON mapping of sections is refused by the file's name."""
    config = tmp_path / "extra.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=r"extra\.yaml"):
        folders_from(parse_options(["--extra-model-paths-config", str(config)]))

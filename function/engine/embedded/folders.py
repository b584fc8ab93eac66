"""Where files are: model folders and their listings, input, output and temp, and how saved files are numbered.

A name that comes from a prompt is hostile: it never leads outside the directory it is looked up in.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from function.engine.embedded.errors import ReportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from function.engine.embedded.options import Options

MODEL_EXTENSIONS = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
IMAGE_EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", ".avif", ".ico"})
LATENT_EXTENSIONS = frozenset({".latent"})

MODEL_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "configs": ("configs",),
    "loras": ("loras",),
    "vae": ("vae",),
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "clip_vision": ("clip_vision",),
    "style_models": ("style_models",),
    "embeddings": ("embeddings",),
    "diffusers": ("diffusers",),
    "vae_approx": ("vae_approx",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "gligen": ("gligen",),
    "upscale_models": ("upscale_models",),
    "custom_nodes": ("custom_nodes",),
    "hypernetworks": ("hypernetworks",),
    "photomaker": ("photomaker",),
    "classifiers": ("classifiers",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
}
"""Folder name -> directories under the models directory, in the order ComfyUI 0.3.64 lists and searches them."""

_OUTPUT_FOLDERS = {"checkpoints": "checkpoints", "text_encoders": "clip", "vae": "vae", "loras": "loras"} | {
    "diffusion_models": "diffusion_models"
}
_LEGACY_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}
_ANNOTATION = re.compile(r"^(?P<name>.*?) ?\[(?P<place>input|output|temp)\]$", re.DOTALL)


class SavePath(NamedTuple):
    """Where an image is saved: `directory/{stem}_{counter:05}_.png`, shown to clients as `subfolder` + name."""

    directory: Path
    stem: str
    counter: int
    subfolder: str


@dataclass(frozen=True, slots=True)
class Folders:
    """The directories of one process.

    Attributes:
        models: Folder name -> directories, searched in order.
        input: Where LoadImage looks.
        output: Where SaveImage writes.
        temp: Where PreviewImage writes.
    """

    models: Mapping[str, tuple[Path, ...]]
    input: Path
    output: Path
    temp: Path

    def model_names(self, folder: str) -> list[str]:
        """The files of a model folder as loaders name them, sorted. Walked anew each time: a new file is seen at once.

        Raises:
            KeyError: There is no such folder.
        """
        names = {name for root in self.models[folder] for name in _walk(root) if _extension(name) in MODEL_EXTENSIONS}
        return sorted(names)

    def model_path(self, folder: str, filename: str) -> Path:
        """The file behind a name in a loader's input.

        Raises:
            FileNotFoundError: No such file, a link to nothing, or a name that points outside the folder.
        """
        inside = os.path.relpath(os.path.join("/", filename), "/")  # noqa: PTH118  (pathlib keeps "..", this drops it)
        for root in self.models[folder]:
            if (path := root / inside).is_file():
                return path
        raise FileNotFoundError(f"Model in folder '{folder}' with filename '{filename}' not found.")

    def input_names(self, extensions: frozenset[str]) -> list[str]:
        """Files with one of these extensions directly in the input directory, sorted."""
        try:
            entries = [entry.name for entry in os.scandir(self.input) if entry.is_file()]
        except FileNotFoundError:
            return []
        return sorted(name for name in entries if _extension(name) in extensions)

    def directory(self, place: str) -> Path | None:
        """The directory of `input`, `output` or `temp`; None for any other word."""
        return {"input": self.input, "output": self.output, "temp": self.temp}.get(place)

    def annotated_path(self, name: str, default: str = "input") -> Path | None:
        """The path that `name`, `name [output]` or `name [temp]` stands for; None where it points outside."""
        match = _ANNOTATION.match(name)
        place, bare = (match["place"], match["name"]) if match else (default, name)
        root = self.directory(place)
        return None if root is None else inside_or_none(root, bare)


def folders_from(options: Options) -> Folders:
    """The directories that the command line names, extra model folders included.

    Raises:
        ValueError: A file of extra model paths is not the JSON subset of YAML, or no mapping of sections.
    """
    roots = {name: [options.models_directory / part for part in parts] for name, parts in MODEL_FOLDERS.items()}
    for name, part in _OUTPUT_FOLDERS.items():
        roots[name].append(options.output_directory / part)
    for path in options.extra_model_paths:
        for name, directory, first in _extra_paths(path):
            roots.setdefault(name, []).insert(0 if first else len(roots[name]), directory)
    return Folders(
        models={name: tuple(paths) for name, paths in roots.items()},
        input=options.input_directory,
        output=options.output_directory,
        temp=options.temp_directory,
    )


def inside_or_none(root: Path, name: str) -> Path | None:
    """`root / name`, or None where the name is absolute, climbs out of `root`, or holds a NUL byte."""
    if "\0" in name:
        return None
    path = Path(os.path.abspath(root / name))  # noqa: PTH100  (resolves ".." without following links, as the rule wants)
    return path if path.is_relative_to(root) and path != root else None


def save_path(prefix: str, root: Path, width: int, height: int) -> SavePath:
    """Where the next image with this filename prefix goes: one above the highest counter in the folder.

    Raises:
        ReportedError: The prefix points outside `root`; worded as ComfyUI words it.
    """
    wanted = os.path.normpath(_filled(prefix, width, height) if "%" in prefix else prefix)
    subfolder, stem = os.path.split(wanted)
    directory = Path(os.path.abspath(root / subfolder))  # noqa: PTH100  (a purely textual check)
    if not directory.is_relative_to(root):
        raise _outside(directory, root)
    directory.mkdir(parents=True, exist_ok=True)
    return SavePath(directory, stem, _next_counter(directory, stem), subfolder)


def _outside(directory: Path, root: Path) -> ReportedError:
    lines = (
        "**** ERROR: Saving image outside the output folder is not allowed.",
        f" full_output_folder: {directory}",
        f"         output_dir: {root}",
        f"         commonpath: {os.path.commonpath((root, directory))}",
    )
    return ReportedError("Exception", "\n".join(lines))


def _next_counter(directory: Path, stem: str) -> int:
    numbered = re.compile(re.escape(stem) + r"_(\d*)", re.DOTALL)
    matches = map(numbered.match, os.listdir(directory))  # noqa: PTH208  (names, not paths: as above)
    return max((int(match[1] or 0) for match in matches if match), default=0) + 1


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {
        "width": str(width),
        "height": str(height),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    return re.sub(r"%(\w+)%", lambda match: values.get(match[1], match[0]), prefix)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  (names, not paths: much faster over thousands)


def _walk(root: Path) -> Iterator[str]:
    """Relative names of all files under `root`, links followed, `.git` left out; nothing where `root` is missing."""
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        subdirectories[:] = [name for name in subdirectories if name != ".git"]
        yield from (os.path.relpath(os.path.join(directory, name), root) for name in files)  # noqa: PTH118  (as above)


def _extra_paths(file: Path) -> Iterable[tuple[str, Path, bool]]:
    try:
        sections = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: the embedded engine reads the JSON subset of YAML only ({error})") from error
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError(f"{file}: not a mapping of sections")
    return [entry for section in sections.values() for entry in _section_paths(file, section)]


def _section_paths(file: Path, section: Mapping[str, object]) -> Iterator[tuple[str, Path, bool]]:
    base = file.parent / Path(os.path.expandvars(str(section.get("base_path", "")))).expanduser()
    first = bool(section.get("is_default", False))
    for name, value in section.items():
        if name in {"base_path", "is_default"}:
            continue
        for line in str(value).splitlines():
            yield _LEGACY_NAMES.get(name, name), base / line.strip(), first

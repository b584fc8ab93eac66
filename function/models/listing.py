"""What the engine finds in the model directory, whoever brought it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from function.file_inputs import LOADER_INPUTS
from function.models.references import ALL_SUFFIXES, CONFIG_SUFFIXES, LEGACY_FOLDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

_KNOWN_FOLDERS = frozenset({*LOADER_INPUTS.values(), "embeddings", "vae_approx"})
_MODERN = {legacy: folder for folder, legacy in LEGACY_FOLDERS.items()}


def model_folders(model_dir: Path) -> list[str]:
    """Names of model folders: those of ComfyUI's own loaders, and those that the directory has besides."""
    try:
        there = {entry.name for entry in model_dir.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    except OSError:  # there is none yet, or none that may be read
        there = set()
    return sorted(_KNOWN_FOLDERS | there - _MODERN.keys())


def modern_folder(name: str) -> str:
    """A folder by the name that it has today: `unet` is `diffusion_models`."""
    return _MODERN.get(name, name)


def list_models(model_dir: Path) -> dict[str, list[str]]:
    """File names by folder, as ComfyUI lists them: paths inside the folder, sorted; its older twin's among them."""
    return {folder: _names(model_dir, folder) for folder in model_folders(model_dir)}


def _names(model_dir: Path, folder: str) -> list[str]:
    suffixes = CONFIG_SUFFIXES if folder == "configs" else ALL_SUFFIXES
    places = [folder, *([LEGACY_FOLDERS[folder]] if folder in LEGACY_FOLDERS else [])]
    return sorted({name for place in places for name in _files(model_dir / place) if name.lower().endswith(suffixes)})


def _files(root: Path) -> Iterator[str]:
    """Paths of all files below a directory; links are followed, but into no directory twice."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        here = Path(folder)
        if str(here.resolve()) in seen:
            inner.clear()
            continue
        seen.add(str(here.resolve()))
        yield from ((here / name).relative_to(root).as_posix() for name in names)

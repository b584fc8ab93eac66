"""How the engine is started: its command line, where it runs, which directories and files must exist before."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from function.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from function.config import Settings

COMFYUI_PORT = 8188
"""Where ComfyUI listens when its command has no `--port`."""

_MODEL_FOLDERS = (
    "audio_encoders",
    "background_removal",
    "checkpoints",
    "classifiers",
    "clip_vision",
    "configs",
    "controlnet",
    "detection",
    "diffusers",
    "diffusion_models",
    "embeddings",
    "frame_interpolation",
    "geometry_estimation",
    "gligen",
    "hypernetworks",
    "latent_upscale_models",
    "loras",
    "model_patches",
    "optical_flow",
    "photomaker",
    "style_models",
    "text_encoders",
    "upscale_models",
    "vae",
    "vae_approx",
)
_OLD_NAMES = {"controlnet": "t2i_adapter", "diffusion_models": "unet", "text_encoders": "clip"}
"""ComfyUI reads these folders too: models that were put in place long ago lie there."""


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """A command line and what must exist before it runs.

    Attributes:
        argv: Program and arguments, without the port if `port` is 0.
        cwd: Where it runs.
        port: Where it listens on loopback; 0: a free port, chosen anew for every process and given as `--port`.
        directories: Made, with their parents, before every start.
        files: Text files written before every start.
    """

    argv: tuple[str, ...]
    cwd: Path
    port: int = 0
    directories: tuple[Path, ...] = ()
    files: tuple[tuple[Path, str], ...] = ()

    def argv_for(self, port: int) -> list[str]:
        """The command line of a process that listens on `port`."""
        return [*self.argv, *(() if self.port else ("--port", str(port)))]

    def prepare(self) -> None:
        """Make the directories and write the files.

        Raises:
            OSError: One of them can't be made.
        """
        for directory in self.directories:
            directory.mkdir(parents=True, exist_ok=True)
        for path, text in self.files:
            path.write_text(text, encoding="utf-8")


def _may_write(directory: Path) -> bool:
    return os.access(directory, os.W_OK)


def engine_command(settings: Settings, *, may_write: Callable[[Path], bool] = _may_write) -> EngineCommand:
    """The command that the settings ask for.

    Args:
        settings: The settings.
        may_write: Whether this process may write into a directory that is there.

    Raises:
        SettingsError: CMD names a port that is none.
    """
    if settings.engine == "embedded":
        return _embedded(settings)
    return _comfyui(settings, settings.comfy_home or Path(), may_write)


def _embedded(settings: Settings) -> EngineCommand:
    """Our own core, with the flags that CMD has for ComfyUI."""
    scratch = settings.data_dir / "engine"
    port = _flag(settings.command, "--port")
    argv = (
        *(sys.executable, "-m", "function.engine.embedded"),
        *("--listen", "127.0.0.1"),
        *_flags(settings.command),
        *("--models-directory", str(settings.model_dir)),
        *("--input-directory", str(settings.input_dir)),
        *("--output-directory", str(settings.output_dir)),
        *("--temp-directory", str(scratch)),
    )
    cwd = Path(__file__).absolute().parents[2]  # where `-m` finds the package, installed or not
    return EngineCommand(
        argv=argv,
        cwd=cwd,
        port=_port(port) if port else 0,
        directories=(settings.input_dir, settings.output_dir, scratch, *_user_directory(argv, cwd)),
    )


def _comfyui(settings: Settings, home: Path, may_write: Callable[[Path], bool]) -> EngineCommand:
    command = settings.command
    base = home / _flag(command, "--base-directory")
    flags = _directory_flags(command, base, settings)
    flags += _flags_of_read_only(command, home, base, settings.data_dir, may_write)
    directories = [settings.input_dir, settings.output_dir]
    files = []
    if settings.model_dir != base / "models":
        paths_file = settings.data_dir / "engine" / "extra_model_paths.yaml"
        flags += ["--extra-model-paths-config", str(paths_file)]
        directories.append(paths_file.parent)
        files.append((paths_file, to_model_paths(settings.model_dir)))
    return EngineCommand(
        argv=(*command, *(_separator(command) if flags else ()), *flags),
        cwd=home,
        port=_port(_flag(command, "--port")),
        directories=(*directories, *_user_directory((*command, *flags), home)),
        files=tuple(files),
    )


def _directory_flags(command: Sequence[str], base: Path, settings: Settings) -> list[str]:
    """Flags for the directories that the command alone would take from elsewhere; the last flag wins in ComfyUI."""
    wanted = {"--input-directory": settings.input_dir, "--output-directory": settings.output_dir}
    own = {"--input-directory": base / "input", "--output-directory": base / "output"}
    return [
        part
        for flag, directory in wanted.items()
        if directory != (settings.comfy_home or base) / (_flag(command, flag) or own[flag])
        for part in (flag, str(directory))
    ]


def _flags_of_read_only(
    command: Sequence[str], home: Path, base: Path, data_dir: Path, may_write: Callable[[Path], bool]
) -> list[str]:
    """Flags for what ComfyUI writes beside itself if it isn't told otherwise, where that can't be written.

    Without a directory of users it ends at its start; without a database some versions only say so.
    """
    wanted = [
        ("--user-directory", base / "user", str(data_dir / "user")),
        ("--temp-directory", base / "temp", str(data_dir)),  # `temp` is appended
    ]
    if _has_database(home):
        wanted.append(("--database-url", home / "user", f"sqlite:///{data_dir / 'comfyui.db'}"))  # whatever the base is
    return [
        part
        for flag, own, value in wanted
        if not _flag(command, flag) and _is_read_only(own, may_write)
        for part in (flag, value)
    ]


def _is_read_only(directory: Path, may_write: Callable[[Path], bool]) -> bool:
    """Whether it is there and can't be written, or is not and can't be made."""
    existing = directory if directory.is_dir() else directory.parent
    return existing.is_dir() and not may_write(existing)


def _has_database(home: Path) -> bool:
    """Whether this ComfyUI takes `--database-url`: those before June 2025 end at a flag that they don't know."""
    flags = home / "comfy" / "cli_args.py"
    return flags.is_file() and "--database-url" in flags.read_text(encoding="utf-8")


def _user_directory(command: Sequence[str], cwd: Path) -> tuple[Path, ...]:
    """Where `--user-directory` has the users' files: the one directory that ComfyUI wants to be there already."""
    user = _flag(command, "--user-directory")
    return (cwd / user,) if user else ()


def _port(text: str) -> int:
    if text and not text.isdigit():
        raise SettingsError(f"CMD: --port {text!r}: expected a TCP port")
    return int(text or COMFYUI_PORT)


def _separator(command: Sequence[str]) -> tuple[str, ...]:
    """`comfy launch` hands on only what follows `--`."""
    return ("--",) if Path(command[0]).name == "comfy" and "--" not in command else ()


def _flags(command: Sequence[str]) -> Sequence[str]:
    """What follows the program: the first flag of its own begins with two dashes, those of Python with one."""
    first = next((place for place, part in enumerate(command) if part.startswith("--")), len(command))
    return [part for part in command[first:] if part != "--"]


def _flag(command: Sequence[str], flag: str) -> str:
    """The value of `--flag value` or `--flag=value`, the last one if it is repeated; "" if there is none."""
    value = ""
    for part, following in zip(command, (*command, "")[1:], strict=True):
        if part == flag:
            value = following
        elif part.startswith(f"{flag}="):
            value = part.removeprefix(f"{flag}=")
    return value


def to_model_paths(model_dir: Path) -> str:
    """ComfyUI's `extra_model_paths.yaml` that makes `model_dir` the first place for every kind of model."""
    lines = ["comfyfn:", f"  base_path: {json.dumps(str(model_dir), ensure_ascii=False)}", "  is_default: true"]
    for folder in _MODEL_FOLDERS:
        names = [*([_OLD_NAMES[folder]] if folder in _OLD_NAMES else []), folder]  # ComfyUI puts the last one first
        lines.append(f"  {folder}: {json.dumps(chr(10).join(names))}")
    return "\n".join(lines) + "\n"

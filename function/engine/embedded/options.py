"""The command line: the flags of ComfyUI's `main.py`, 0.3.64 to 0.33.0, under their own names.

Those that mean something here are honoured; those about GPUs, launching, attention and the like (`flags.py`) are taken
without effect, so that one CMD starts either core. What ComfyUI refuses is refused.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from function.engine.embedded.flags import add_flags_without_effect

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "python -m function.engine.embedded"
"""How this core is started where nothing else is said."""

EVERY_ADDRESS = "0.0.0.0,::"
"""What `--listen` without a value means."""


@dataclass(frozen=True, slots=True)
class Options:
    """How this process was asked to run.

    Attributes:
        addresses: Addresses to listen on.
        port: TCP port; 0 takes any free one.
        models_directory: Root of the model folders.
        input_directory: Where LoadImage looks.
        output_directory: Where SaveImage writes.
        temp_directory: Where PreviewImage writes; wiped at start and exit.
        extra_model_paths: Files that name more model folders.
        metadata: Whether PNG files carry the prompt.
        keep_cache: False with `--cache-none`: every node runs in every prompt.
        max_upload_bytes: The largest body of a request.
    """

    addresses: tuple[str, ...]
    port: int
    models_directory: Path
    input_directory: Path
    output_directory: Path
    temp_directory: Path
    extra_model_paths: tuple[Path, ...] = ()
    metadata: bool = True
    keep_cache: bool = True
    max_upload_bytes: int = 100 * 1024 * 1024


def parse_options(arguments: Sequence[str], *, program: str = PROGRAM) -> Options:
    """Read the command line.

    Args:
        arguments: What follows the program.
        program: What messages call the program.

    Raises:
        SystemExit: An unknown flag or a bad value (status 2), `--help` (status 0).
    """
    flags = _parser(program).parse_args(arguments)
    base = Path(flags.base_directory).absolute()

    def directory(value: str | None, default: str) -> Path:
        return base / default if value is None else Path(value).absolute()

    return Options(
        addresses=tuple(address.strip() for address in flags.listen.split(",")),
        port=flags.port,
        models_directory=directory(flags.models_directory, "models"),
        input_directory=directory(flags.input_directory, "input"),
        output_directory=directory(flags.output_directory, "output"),
        temp_directory=directory(flags.temp_directory, "") / "temp",
        extra_model_paths=tuple(Path(path).absolute() for group in flags.extra_model_paths_config for path in group),
        metadata=not flags.disable_metadata,
        keep_cache=not flags.cache_none,
        max_upload_bytes=int(flags.max_upload_size * 1024 * 1024),
    )


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, usage=f"{program} [FLAGS]", description="A CPU core that speaks ComfyUI's protocol."
    )
    _add_network_flags(parser)
    _add_directory_flags(parser)
    parser.add_argument("--disable-metadata", action="store_true", help="write no prompt into saved files")
    add_flags_without_effect(parser)
    return parser


def _add_network_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", nargs="?", const=EVERY_ADDRESS, default="127.0.0.1", metavar="IP[,IP]")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--max-upload-size", type=float, default=100, metavar="MIB")


def _add_directory_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-directory", default=".", metavar="DIR", help="root of models, input, output and temp")
    parser.add_argument("--models-directory", metavar="DIR")
    parser.add_argument("--input-directory", metavar="DIR")
    parser.add_argument("--output-directory", metavar="DIR")
    parser.add_argument("--temp-directory", metavar="DIR", help="`temp` is appended; wiped at start and exit")
    parser.add_argument(
        "--extra-model-paths-config",
        nargs="+",
        action="append",
        default=[],
        metavar="FILE",
        help="more model folders; the JSON subset of YAML",
    )

"""Flags of ComfyUI 0.3.64 to 0.33.0 that this core takes without effect, with ComfyUI's own rules about their values.

Source of the lists: `python main.py --help` of both versions. Left out, and so refused, is what this core would have to
do and can't: `--tls-keyfile` and `--tls-certfile`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Flags: TypeAlias = dict[str, dict[str, Any]]


def _directory(text: str) -> str:
    """A directory that is there and can be read, as ComfyUI's `is_valid_directory` has it."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    if not os.access(text, os.R_OK):
        raise argparse.ArgumentTypeError(f"{text!r} can't be read")
    return text


_SWITCH: dict[str, Any] = {"action": "store_true"}
_TEXT: dict[str, Any] = {"metavar": "X"}
_DIRECTORY: dict[str, Any] = {"metavar": "DIR", "type": _directory}
_INTEGER: dict[str, Any] = {"type": int, "metavar": "N"}
_NUMBER: dict[str, Any] = {"type": float, "metavar": "X"}
_SPEEDUPS = ("fp16_accumulation", "fp8_matrix_mult", "cublas_ops", "autotune")

_CACHES: Flags = {
    "cache-none": _SWITCH | {"help": "run every node in every prompt"},
    "cache-classic": _SWITCH,
    "cache-lru": _INTEGER,
    "cache-ram": _NUMBER | {"nargs": "*"},
    "high-ram": _SWITCH,
}
"""At most one is taken. Only `--cache-none` has an effect: otherwise this core caches as `--cache-classic` does."""

_EXCLUSIVE: tuple[tuple[str, ...], ...] = (
    ("gpu-only", "highvram", "normalvram", "lowvram", "novram", "cpu"),
    ("cuda-malloc", "disable-cuda-malloc"),
    ("force-fp32", "force-fp16"),
    ("fp32-unet", "fp64-unet", "bf16-unet", "fp16-unet", "fp8_e4m3fn-unet", "fp8_e5m2-unet", "fp8_e8m0fnu-unet"),
    ("fp16-vae", "fp32-vae", "bf16-vae"),
    ("fp8_e4m3fn-text-enc", "fp8_e5m2-text-enc", "fp16-text-enc", "fp32-text-enc", "bf16-text-enc"),
    (
        *("use-split-cross-attention", "use-quad-cross-attention", "use-pytorch-cross-attention"),
        *("use-sage-attention", "use-flash-attention", "use-ck-attention"),
    ),
    ("force-upcast-attention", "dont-upcast-attention"),
)
"""Switches of which at most one is taken."""

_SWITCHES = (
    "auto-launch",
    "cpu-vae",
    "debug-hang",
    "deterministic",
    "disable-all-custom-nodes",
    "disable-api-nodes",
    "disable-async-offload",
    "disable-auto-launch",
    "disable-cuda-graphs",
    "disable-dynamic-vram",
    "disable-ipex-optimize",
    "disable-manager-ui",
    "disable-mmap",
    "disable-nvml-pressure",
    "disable-pinned-memory",
    "disable-smart-memory",
    "disable-triton-backend",
    "disable-xformers",
    "dont-print-server",
    "enable-asset-hashing",
    "enable-assets",
    "enable-compress-response-body",
    "enable-dynamic-vram",
    "enable-manager",
    "enable-manager-legacy-ui",
    "enable-triton-backend",
    "fast-disk",
    "force-channels-last",
    "force-non-blocking",
    "fp16-intermediates",
    "log-stdout",
    "mmap-torch-files",
    "multi-user",
    "supports-fp8-compute",
    "windows-standalone-build",
)
_WITH_VALUE: Flags = {
    "async-offload": _INTEGER | {"nargs": "?"},
    "comfy-api-base": _TEXT,
    "cuda-device": _TEXT,
    "database-url": _TEXT,
    "default-device": _INTEGER,
    "default-hashing-function": {"choices": ("md5", "sha1", "sha256", "sha512")},
    "directml": _INTEGER | {"nargs": "?"},
    "enable-cors-header": _TEXT | {"nargs": "?"},
    "fast": {"nargs": "*", "choices": _SPEEDUPS},
    "feature-flag": _TEXT | {"action": "append"},
    "front-end-root": _DIRECTORY,
    "front-end-version": _TEXT,
    "oneapi-device-selector": _TEXT,
    "preview-method": {"choices": ("none", "auto", "latent2rgb", "taesd")},
    "preview-size": _INTEGER,
    "reserve-vram": _NUMBER,
    "user-directory": _DIRECTORY,
    "verbose": {"nargs": "?", "choices": ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")},
    "vram-headroom": _NUMBER,
    "whitelist-custom-nodes": _TEXT | {"nargs": "+"},
}


class _Parser(Protocol):
    def add_argument(self, *names: str, **rules: Any) -> object:  # noqa: ANN401  (as argparse has it)
        """Take one flag."""


def add_flags_without_effect(parser: argparse.ArgumentParser) -> None:
    """Let the parser take them."""
    _add(parser.add_mutually_exclusive_group(), _CACHES)
    for group in _EXCLUSIVE:
        _add(parser.add_mutually_exclusive_group(), dict.fromkeys(group, _SWITCH))
    _add(parser, dict.fromkeys(_SWITCHES, _SWITCH) | _WITH_VALUE)


def _add(parser: _Parser, flags: Flags) -> None:
    for name, rules in flags.items():
        parser.add_argument(f"--{name}", **{"help": "taken, without effect", **rules})

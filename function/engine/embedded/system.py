"""The body of `/system_stats`: the machine, and that this is the embedded core."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from function.engine.embedded import COMFYUI_VERSION, EMBEDDED_VERSION


def system_stats() -> dict[str, Any]:
    """The machine as ComfyUI describes it; its one device is the CPU."""
    total, free = memory()
    system = {
        "os": os.name,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": COMFYUI_VERSION,
        "python_version": sys.version,
        "pytorch_version": "none",
        "embedded_python": False,
        "embedded_engine": EMBEDDED_VERSION,
        "argv": sys.argv,
    }
    device = {
        "name": "cpu",
        "type": "cpu",
        "index": None,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": total,
        "torch_vram_free": free,
    }
    return {"system": system, "devices": [device]}


def memory(*, meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Bytes of memory: all, and what a program could still get. (0, 0) where there is no /proc."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":", 1) for line in lines)}
    return sizes["MemTotal"], sizes["MemAvailable"]

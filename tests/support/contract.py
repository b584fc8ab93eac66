"""Requests and answers as data, with what varies left open."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.support.engine import case

CONTRACT = Path(__file__).parents[1] / "data" / "comfyui_api"


def two_files() -> dict[str, Any]:
    """A workflow that saves the same picture twice, under the same name in two folders."""
    workflow = case("01_empty_save")
    second = {"class_type": "SaveImage", "inputs": workflow["2"]["inputs"] | {"filename_prefix": "sub/c01"}}
    return workflow | {"3": second}


def fails() -> dict[str, Any]:
    """A workflow whose last node can't write where it is told to."""
    workflow: dict[str, Any] = contract("requests")["a node that fails"]["body"]["prompt"]
    return workflow


def contract(name: str) -> Any:
    """What one of the files holds."""
    return json.loads((CONTRACT / f"{name}.json").read_text())


def filled(value: Any, places: dict[str, str]) -> Any:
    """A value with workflows for `@name` and URLs for `$NAME`."""
    if isinstance(value, dict):
        return {name: filled(member, places) for name, member in value.items()}
    if isinstance(value, list):
        return [filled(item, places) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("@"):
        return {"@two_files": two_files, "@fails": fails}.get(value, lambda: case(value[1:]))()
    for name, place in places.items():
        value = value.replace(f"${name}", place)
    return value


def differences(wanted: Any, found: Any, place: str = "") -> list[str]:
    """Where a found value is not as wanted; see `tests/data/comfyui_api/README.md`."""
    if wanted == "*":
        return []
    if isinstance(wanted, str) and wanted.startswith("~"):
        return [] if re.fullmatch(wanted[1:], str(found)) else [f"{place}: {str(found)[:200]!r} is no {wanted[1:]}"]
    if isinstance(wanted, dict) and isinstance(found, dict):
        surplus = [f"{place}.{name}: is there" for name in wanted.get("absent", []) if name in found]
        names = [name for name in wanted if name != "absent"]
        return surplus + [
            line for name in names for line in differences(wanted[name], found.get(name), f"{place}.{name}")
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            line
            for number, item in enumerate(wanted)
            for line in differences(item, found[number], f"{place}[{number}]")
        ]
    return [] if wanted == found else [f"{place}: {str(found)[:200]!r} is not {wanted!r}"]

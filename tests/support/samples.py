"""The sample requests of `events/samples` with what they ask for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

SCHEMAS = files("events") / "schemas"
SAMPLES = files("events") / "samples"
INDEX: dict[str, dict[str, Any]] = json.loads((SAMPLES / "index.json").read_bytes())


@dataclass(frozen=True)
class Sample:
    """One HTTP request: headers as WSGI gives them, and the body."""

    headers: dict[str, str]
    body: bytes


def sample(name: str) -> Sample:
    """The request in the file of that name."""
    head, body = (SAMPLES / name).read_bytes().split(b"\n\n", 1)
    lines = head.decode("latin-1").split("\n")[1:]
    return Sample(dict(line.split(": ", 1) for line in lines), body)


def schema(name: str) -> dict[str, Any]:
    """A published schema of event data."""
    document: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_bytes())
    return document

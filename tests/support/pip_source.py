"""Where pip gets packages from on this machine, for builds of images that shall get them from there too."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class PipSource:
    """A configuration of pip that works in a container.

    Attributes:
        config: A configuration file with all that the environment and pip's own files say.
        mounts: The files and directories that it names, and their places in the container.
    """

    config: str
    mounts: dict[Path, Path]

    @classmethod
    def of_this_machine(cls) -> PipSource:
        """What pip itself says that it is, the environment included."""
        command = [sys.executable, "-m", "pip", "config", "list"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        values: dict[str, str] = {}
        for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
            name, _, value = line.partition("=")
            values[name.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
        mounts = {path: path for value in values.values() for path in _paths(value)}
        authorities = values.pop("cert", os.environ.get("SSL_CERT_FILE", ""))
        mounts.pop(Path(authorities), None)
        if authorities:
            values["cert"] = "/run/pip-authorities.crt"
            mounts[Path(authorities)] = Path(values["cert"])
        lines = [f"{name} = {value}\n" for name, value in values.items()]
        return cls("[global]\n" + "".join(lines), mounts)


def _paths(value: str) -> Iterator[Path]:
    """The files and directories in a value; of an index, the directory around it, as its files may lie beside it."""
    for word in value.split():
        url = urlsplit(word)
        path = Path(url.path)
        if url.scheme in {"", "file"} and path.is_absolute() and path.exists():
            yield path.parent if url.scheme and path.parent != Path("/") else path

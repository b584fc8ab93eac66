"""Bakes what a manifest names into an image: Debian packages, Python packages, ComfyUI's custom nodes.

Run by the Dockerfile while it builds the target `gpu`, with nothing but Python's standard library:

    bake.py apt   manifest.json
    bake.py pip   manifest.json --python PYTHON [--constraint FILE]
    bake.py nodes manifest.json --python PYTHON [--constraint FILE] --directory custom_nodes

The manifest is a JSON object: `apt` (names of packages, with `=version` if need be), `pip` (requirements) and
`custom_nodes` (objects with `url`, a git repository, and `ref`, a tag or a full commit: what a branch points to
changes; or both in one URL, as comfyui-api has them: `https://host/user/repository@v1.0.0`, `.../tree/<ref>`,
`.../commit/<ref>`). Its `models` are not baked: the function brings them when it starts. Anything else in it ends the
build with one line.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?:=[A-Za-z0-9.+:~-]+)?")
_URL = re.compile(r"(?:https|file)://[^\s@?#]+")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_URL_WITH_REF = re.compile(r"(.+?)(?:/(?:-/)?(?:tree|commits?|releases/tag|src)/|@)([^@]+)")
_BRANCHES = frozenset({"main", "master", "HEAD", "develop", "dev"})


class ManifestError(Exception):
    """The manifest names what can't be baked; the message says what, and what is expected."""


@dataclass(frozen=True)
class CustomNode:
    """A git repository at one tag or commit, by the name of its directory."""

    url: str
    ref: str

    @property
    def name(self) -> str:
        """What its directory below `custom_nodes` is called."""
        return self.url.rstrip("/").rpartition("/")[2].removesuffix(".git")


@dataclass(frozen=True)
class Manifest:
    """All that an image gets beside ComfyUI itself."""

    apt: tuple[str, ...]
    pip: tuple[str, ...]
    custom_nodes: tuple[CustomNode, ...]


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: It is none.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: expected a JSON file ({error})") from None
    known = {"apt", "pip", "custom_nodes", "models"}
    unknown = set(document) - known if isinstance(document, dict) else {"it"}
    if unknown:
        raise ManifestError(f"{path}: {', '.join(sorted(unknown))}: expected an object with apt, pip and custom_nodes")
    nodes = tuple(_node(entry) for entry in document.get("custom_nodes", []))
    if len({node.name for node in nodes}) < len(nodes):
        raise ManifestError("custom_nodes: two of them have the same name")
    return Manifest(
        apt=tuple(
            _checked("apt", entry, _PACKAGE, "a package, or package=version") for entry in document.get("apt", [])
        ),
        pip=tuple(_requirement(entry) for entry in document.get("pip", [])),
        custom_nodes=nodes,
    )


def _checked(what: str, value: object, pattern: re.Pattern[str], expected: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ManifestError(f"{what}: {value!r}: expected {expected}")
    return value


def _requirement(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or value.startswith("-"):
        raise ManifestError(f"pip: {value!r}: expected a requirement like kornia==0.8.1, not an option")
    return value


def _node(entry: object) -> CustomNode:
    if isinstance(entry, str) and (parts := _URL_WITH_REF.fullmatch(entry)):
        entry = {"url": parts[1], "ref": parts[2]}
    if not isinstance(entry, dict) or set(entry) != {"url", "ref"}:
        raise ManifestError(f"custom_nodes: {entry!r}: expected an object with url and ref")
    url = _checked("custom_nodes: url", entry["url"], _URL, "an https:// URL of a git repository, without credentials")
    ref = _checked("custom_nodes: ref", entry["ref"], _REF, "a tag or a commit")
    node = CustomNode(url, ref)
    if ref in _BRANCHES:
        raise ManifestError(f"custom_nodes: {node.name}: ref {ref!r} is a branch: expected a tag or a commit")
    if not node.name or node.name.startswith("."):
        raise ManifestError(f"custom_nodes: url: {url!r}: expected a URL that ends in a name")
    return node


def apt_commands(manifest: Manifest) -> list[list[str]]:
    """What installs the Debian packages and leaves no list of packages in the image."""
    if not manifest.apt:
        return []
    return [
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", *manifest.apt],
        ["find", "/var/lib/apt/lists", "-mindepth", "1", "-delete"],
    ]


def pip_commands(requirements: Sequence[str], *, python: str, constraint: str) -> list[list[str]]:
    """What installs Python packages into ComfyUI's environment, without moving the versions of the constraints."""
    if not requirements:
        return []
    bound = ["--constraint", constraint] if constraint else []
    return [[python, "-m", "pip", "install", "--no-cache-dir", *bound, *requirements]]


def fetch_commands(node: CustomNode, directory: Path) -> list[list[str]]:
    """What brings one repository at its tag or commit, without its history."""
    git = ["git", "-C", str(directory)]
    return [
        ["git", "init", "--quiet", str(directory)],
        [*git, "fetch", "--quiet", "--depth", "1", node.url, node.ref],
        [*git, "checkout", "--quiet", "FETCH_HEAD"],
        ["rm", "-rf", str(directory / ".git")],
    ]


def bake_nodes(manifest: Manifest, directory: Path, *, python: str, constraint: str) -> None:
    """Bring every custom node and install what its `requirements.txt` asks for."""
    for node in manifest.custom_nodes:
        place = directory / node.name
        _run(fetch_commands(node, place))
        if (requirements := place / "requirements.txt").is_file():
            _run(pip_commands(["-r", str(requirements)], python=python, constraint=constraint))


def _run(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        print("+", *command, flush=True)  # noqa: T201  (the log of the build)
        subprocess.run(command, check=True)  # noqa: S603  (the manifest is the image's own)


def main(arguments: Sequence[str]) -> None:
    """Bake one part of a manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["apt", "pip", "nodes"])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--constraint", default="")
    parser.add_argument("--directory", type=Path, default=Path("custom_nodes"))
    options = parser.parse_args(arguments)
    manifest = read_manifest(options.manifest)
    if options.part == "apt":
        _run(apt_commands(manifest))
    elif options.part == "pip":
        _run(pip_commands(manifest.pip, python=options.python, constraint=options.constraint))
    else:
        bake_nodes(manifest, options.directory, python=options.python, constraint=options.constraint)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ManifestError as error:
        sys.exit(f"Error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"Error: {' '.join(error.cmd)} ended with {error.returncode}")

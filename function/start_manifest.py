"""MANIFEST and MANIFEST_JSON, in comfyui-api's form: what is brought at the start, and what belongs into the image.

At run time it is models only. Debian packages, Python packages and custom nodes are named in the log unless the image
has them: installed at each start they would cost minutes, other versions every time, and a writable root.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from function.sources import parse_source_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BAKED_MANIFEST = Path("/bake/manifest.json")
"""What the image was built with; see the Dockerfile."""

_FORM = (
    'an object with models, like {"models": {"before_start": [{"url": "https://host/sd.safetensors", "local_path": '
    '"/opt/ComfyUI/models/checkpoints/sd.safetensors"}], "after_start": []}}'
)
_IMAGE_PARTS = ("apt", "pip", "custom_nodes")
_SUFFIXES = {".yml", ".yaml", ".json"}
_DEFAULT_MODEL_DIR = PurePosixPath("/opt/ComfyUI/models")


@dataclass(frozen=True, slots=True)
class StartModel:
    """A model that is wanted from the start.

    Attributes:
        key: Model folder and name, `checkpoints/sd.safetensors`.
        url: Where it comes from, which may hold a secret; None: from MODELS_URL, under its key.
    """

    key: str
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class StartManifest:
    """What a manifest names.

    Attributes:
        before_start: Models to bring before the function is ready; their keys are paths until `placed`.
        after_start: Models to bring beside the jobs.
        image: What belongs into the image: `apt`, `pip` or `custom_nodes`, and a name.
    """

    before_start: tuple[StartModel, ...] = ()
    after_start: tuple[StartModel, ...] = ()
    image: tuple[tuple[str, str], ...] = ()

    @property
    def urls(self) -> frozenset[str]:
        """Every URL, which may hold a secret."""
        return frozenset(model.url for model in (*self.before_start, *self.after_start) if model.url is not None)

    def placed(self, model_dirs: Sequence[Path]) -> StartManifest:
        """The same with keys in the place of paths.

        Args:
            model_dirs: What a path may lie below: MODEL_DIR first.

        Raises:
            ValueError: A path does not lie in a folder of one of them.
        """
        return replace(
            self,
            before_start=tuple(_placed(model, model_dirs) for model in self.before_start),
            after_start=tuple(_placed(model, model_dirs) for model in self.after_start),
        )


def manifest_file(text: str) -> StartManifest | None:
    """The manifest in a file; None for no file."""
    if not text:
        return None
    path = Path(text).expanduser()
    if path.suffix not in _SUFFIXES:
        raise ValueError("the path of a .yml, .yaml or .json file")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"a file that can be read ({getattr(error, 'strerror', None) or error})") from None
    return _parse(content) if path.suffix == ".json" else parse_manifest(_from_yaml(content))


def manifest_json(text: str) -> StartManifest | None:
    """The manifest that a text is; None for no text."""
    return _parse(text) if text else None


def parse_manifest(document: object) -> StartManifest:
    """Check a manifest; every member may be missing, `models` too.

    Raises:
        ValueError: With what is expected; no URL is repeated.
    """
    if not isinstance(document, dict) or document.keys() - {*_IMAGE_PARTS, "models"}:
        raise ValueError(f"{_FORM}, and apt, pip or custom_nodes, which belong into the image")
    models = document.get("models") or {}
    if not isinstance(models, dict) or models.keys() - {"before_start", "after_start"}:
        raise ValueError(_FORM)
    return StartManifest(
        before_start=tuple(_models(models, "before_start")),
        after_start=tuple(_models(models, "after_start")),
        image=tuple((part, _node_name(entry)) for part in _IMAGE_PARTS for entry in _list(document, part)),
    )


def not_in_image(manifest: StartManifest, *, baked: Path = BAKED_MANIFEST) -> list[str]:
    """What a manifest wants of the image and the image was not built with, as `pip kornia`."""
    try:
        built = parse_manifest(json.loads(baked.read_text(encoding="utf-8"))).image
    except (OSError, ValueError):
        built = ()
    there = {(part, _bare(part, name)) for part, name in built}
    return [f"{part} {name}" for part, name in manifest.image if (part, _bare(part, name)) not in there]


def _parse(text: str) -> StartManifest:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"JSON: {_FORM}") from None
    return parse_manifest(document)


def _from_yaml(text: str) -> object:
    import yaml  # noqa: PLC0415  (only who has such a file waits for it)

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"YAML: {_FORM}") from None


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = [] if document.get(name) is None else document[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} to be a list")  # noqa: TRY004  (what is wrong with settings is a ValueError)
    return value


def _models(models: dict[str, Any], name: str) -> Iterator[StartModel]:
    for number, entry in enumerate(_list(models, name)):
        where = f"models.{name}.{number}"
        if not isinstance(entry, dict) or entry.keys() != {"url", "local_path"}:
            raise ValueError(f"{where} to have a url and a local_path")
        url, path = entry["url"], entry["local_path"]
        if not isinstance(url, str) or not isinstance(path, str):
            raise ValueError(f"{where} to have texts as url and local_path")  # noqa: TRY004  (as above)
        try:
            parse_source_url(url)
        except ValueError as error:
            raise ValueError(f"{where}.url to be an https:// or s3:// URL ({error})") from None
        yield StartModel(path, url)


def _placed(model: StartModel, model_dirs: Sequence[Path]) -> StartModel:
    path = PurePosixPath(model.key)
    roots = [*map(PurePosixPath, model_dirs), _DEFAULT_MODEL_DIR]
    if path.is_absolute():
        path = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path)
    if path.is_absolute() or len(path.parts) < 2 or ".." in path.parts:  # noqa: PLR2004  (folder and name)
        raise ValueError(
            f"local_path {model.key!r} to lie in a model folder, like {roots[0]}/checkpoints/sd.safetensors"
        )
    return replace(model, key=str(path))


def _node_name(entry: object) -> str:
    """A package or node as people know it: of an object, as images have them, its URL."""
    return str(entry.get("url", entry)) if isinstance(entry, dict) else str(entry)


def _bare(part: str, name: str) -> str:
    """A name without its version: that of a node is its repository's."""
    if part == "apt":
        return name.partition("=")[0]
    if part == "pip":
        return re.split(r"[\s\[<>=!~;@]", name.strip(), maxsplit=1)[0].lower().replace("_", "-")
    repository = re.split(r"(?<!:/)/(?:-/)?(?:tree|commits?|releases|src)/|@", name, maxsplit=1)[0]
    return repository.rstrip("/").rpartition("/")[2].removesuffix(".git").lower()

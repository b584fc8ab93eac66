"""Which model files a workflow names, and the stamp that makes the engine notice a replaced one. Pure."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from function.errors import InputRefusedError, JobFailedError
from function.file_inputs import LOADER_CLASSES, LOADER_INPUTS, is_media
from function.models.urls import allowed_url, folder_of, local_name
from function.sources import is_url
from function.workflow import OUTPUT_INPUT, check_relative, literal_inputs, replace_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from function.credentials import UrlCredential
    from function.sources import AllowedUrls
    from function.workflow import Workflow

ETAG_STAMP = "comfyfn_etag"

LEGACY_FOLDERS = {"diffusion_models": "unet", "text_encoders": "clip", "controlnet": "t2i_adapter"}
"""Second directory in which ComfyUI looks for the files of a folder."""

_SAFE_SUFFIXES = (".safetensors", ".sft")
_PICKLE_SUFFIXES = (".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl")
CONFIG_SUFFIXES = (".yaml",)
ALL_SUFFIXES = _SAFE_SUFFIXES + _PICKLE_SUFFIXES
"""What the names of model files end with, in lower case."""

_OPTIONAL_FOLDERS = frozenset({"embeddings", "configs"})
_NO_FILE = frozenset({"", "None", "[None]"})
_MAX_SEGMENT_BYTES = 255
_MAX_KEY_BYTES = 1024


# VAELoader's names that are no file of the folder vae.
_VAE_PAIRS = frozenset({"taesd", "taesdxl", "taesd3", "taef1", "taef2"})
_VAE_WITHOUT_FILE = "pixel_space"
_VAE_APPROX_PREFIXES = ("taehv", "lighttae")

# ComfyUI ends a name at white space and drops trailing commas; brackets and a colon around it are weights.
_EMBEDDING = re.compile(r"(?<!\w)embedding:([^\s,():\\]+)")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model file that one input of one node names.

    Attributes:
        folder: ComfyUI's model folder, for example `checkpoints`.
        filename: Path inside the folder, with `/`.
        node_id: The node whose input names it.
        input_name: That input.
        source_url: The `s3://` or `https://` URL that the input gave in place of a name, else None. It may hold a
            secret in its query: never show it, and never store it.
        credentials: What requests for that URL carry, where it came with them, before what the settings say.
        private: Whether the file is only for those who bring such credentials: those of a workflow's sender.
    """

    folder: str
    filename: str
    node_id: str
    input_name: str
    source_url: str | None = field(default=None, repr=False)
    credentials: tuple[UrlCredential, ...] = field(default=(), repr=False)
    private: bool = False

    @property
    def key(self) -> str:
        """Where the file lies, below MODEL_DIR as well as in storage: `checkpoints/sd.safetensors`."""
        return f"{self.folder}/{self.filename}"

    @property
    def named_by(self) -> str:
        """Who names it, for messages: a node's input, or nothing but itself."""
        return f"node {self.node_id}, input {self.input_name}" if self.node_id else f"model {self.key}"

    @property
    def optional(self) -> bool:
        """Whether the job runs without it.

        ComfyUI skips an embedding that is not there, and brings its configs with it.
        """
        return self.folder in _OPTIONAL_FOLDERS


def model_references(
    workflow: Workflow, *, allow_pickle: bool = False, allow: Iterable[AllowedUrls] = ()
) -> tuple[ModelRef, ...]:
    """Every model file that the workflow's loaders and prompts name, in the order of the graph.

    A linked input names nothing. The same file named twice is two references.

    Args:
        workflow: A parsed graph.
        allow_pickle: Accept .ckpt, .pt, .bin and .pth too: loading such a file runs code that is in it.
        allow: URLs that may stand in place of names.

    Raises:
        InputRefusedError: A name that leaves its folder, a file format or a URL that is not allowed.
    """
    references = tuple(_references(workflow, tuple(allow)))
    for reference in references:
        with model_errors(reference.node_id):
            check_reference(reference, allow_pickle=allow_pickle)
    _check_sources(references)
    return references


@contextmanager
def model_errors(node_id: str) -> Iterator[None]:
    """Put errors about a node's model into comfyui-api's words; of a model that no node names they stay."""
    try:
        yield
    except JobFailedError as error:
        if not node_id:
            raise
        error.message = error.message.removeprefix(f"node {node_id}, ")
        raise error.at(f"Failed to process model for node {node_id}", location=f"prompt.{node_id}.inputs") from error


def localise_models(workflow: Workflow, references: Iterable[ModelRef]) -> Workflow:
    """The graph with names inside the model's folder, where it gave a URL or another part of the model's key."""
    return replace_inputs(
        workflow,
        {
            (reference.node_id, reference.input_name): reference.filename
            for reference in references
            if reference.node_id and (reference.source_url or _is_other_part(workflow, reference))
        },
    )


def _is_other_part(workflow: Workflow, reference: ModelRef) -> bool:
    value = workflow[reference.node_id]["inputs"][reference.input_name]
    return value != reference.filename and f"/{reference.key}".endswith(f"/{value}")


def stamp_loaders(workflow: Workflow, etags: Mapping[ModelRef, str]) -> Workflow:
    """The graph with an extra input on each node that names models; it changes when one of their files does.

    A model that no node names stamps none.

    ComfyUI keeps old weights when a file is replaced under the same name. It ignores inputs that a node does not
    declare, but its cache key covers them: only this loader and what follows from it run again.
    """
    by_node: dict[str, list[ModelRef]] = {}
    for reference in sorted(etags, key=lambda reference: (reference.input_name, reference.filename)):
        if reference.node_id:
            by_node.setdefault(reference.node_id, []).append(reference)
    return replace_inputs(
        workflow,
        {(node_id, ETAG_STAMP): " ".join(etags[ref] for ref in references) for node_id, references in by_node.items()},
    )


def _references(workflow: Workflow, allow: tuple[AllowedUrls, ...]) -> Iterator[ModelRef]:
    for node_id, class_type, name, value in literal_inputs(workflow):
        folder = LOADER_INPUTS.get((class_type, name))
        if (folder and is_url(value)) or _is_custom_url(class_type, name, value):
            with model_errors(node_id):
                reference = _url_reference(node_id, name, value, folder, allow)
            yield reference
        elif folder and value not in _NO_FILE:
            files = _vae_files(value) if class_type == "VAELoader" else [(folder, value)]
            yield from (ModelRef(*file, node_id, name) for file in files)
        elif not folder and not is_media(class_type, name):  # which may be a file of many megabytes
            embeddings = _EMBEDDING.findall(value)
            yield from (ModelRef("embeddings", _with_suffix(found), node_id, name) for found in embeddings)


def _is_custom_url(class_type: str, name: str, value: str) -> bool:
    if class_type in LOADER_CLASSES or name == OUTPUT_INPUT or is_media(class_type, name) or not is_url(value):
        return False
    return value.partition("?")[0].lower().endswith(ALL_SUFFIXES) and len(value.split()) == 1


def _url_reference(node_id: str, name: str, value: str, folder: str | None, allow: tuple[AllowedUrls, ...]) -> ModelRef:
    what = f"node {node_id}, input {name}"
    url = allowed_url(value, allow, what=what)
    folder = folder or folder_of(url, name, LOADER_INPUTS, what=what)
    suffixes = CONFIG_SUFFIXES if folder == "configs" else ALL_SUFFIXES
    return ModelRef(folder, local_name(url, suffixes, what=what), node_id, name, source_url=value)


def _check_sources(references: Iterable[ModelRef]) -> None:
    """A URL's name leaves out its query; within one job one name must mean one file."""
    sources: dict[str, str | None] = {}
    for reference in references:
        if sources.setdefault(reference.key, reference.source_url) != reference.source_url:
            what = f"node {reference.node_id}, input {reference.input_name}"
            raise InputRefusedError(f"{what}: two sources of {reference.filename} differ only in their queries")


def _vae_files(name: str) -> list[tuple[str, str]]:
    if name == _VAE_WITHOUT_FILE:
        return []
    if name in _VAE_PAIRS:
        return [("vae_approx", f"{name}_{part}.safetensors") for part in ("encoder", "decoder")]
    return [("vae_approx" if name.startswith(_VAE_APPROX_PREFIXES) else "vae", name)]


def _with_suffix(embedding: str) -> str:
    # ComfyUI tries its suffixes when the name has none; .safetensors comes first.
    has_suffix = embedding.lower().endswith(ALL_SUFFIXES)
    return embedding if has_suffix else f"{embedding}.safetensors"


def check_reference(reference: ModelRef, *, allow_pickle: bool) -> None:
    """Refuse a name that leaves its folder, and a file format that is not allowed.

    Raises:
        InputRefusedError: Naming node and input.
    """
    what = reference.named_by
    name = reference.filename
    check_relative(name, what=what)
    try:
        lengths = [len(segment.encode()) for segment in name.split("/")]
    except UnicodeEncodeError:
        raise InputRefusedError(f"{what}: {name!r} is not valid Unicode") from None
    if max(lengths) > _MAX_SEGMENT_BYTES or len(reference.key.encode()) > _MAX_KEY_BYTES:
        raise InputRefusedError(f"{what}: {name[:40]!r}… is longer than a file name may be")
    _check_suffix(reference, what, allow_pickle=allow_pickle)


def _check_suffix(reference: ModelRef, what: str, *, allow_pickle: bool) -> None:
    suffix = PurePosixPath(reference.filename).suffix.lower()
    if reference.folder == "configs":
        allowed: tuple[str, ...] = CONFIG_SUFFIXES
    else:
        allowed = ALL_SUFFIXES if allow_pickle else _SAFE_SUFFIXES
    if suffix in allowed:
        return
    refused = f"{what}: {reference.filename!r} is"
    if suffix in _PICKLE_SUFFIXES and reference.folder != "configs":
        raise InputRefusedError(
            f"{refused} a pickle file, which can run code when it is loaded; allowed are {' '.join(allowed)}, "
            "and all others with ALLOW_PICKLE_MODELS=true"
        )
    raise InputRefusedError(f"{refused} no model; allowed are {' '.join(allowed)}")

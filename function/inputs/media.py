"""Which inputs of a workflow stand for input files. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from function.file_inputs import CUSTOM_INPUT, MEDIA_INPUTS
from function.workflow import OUTPUT_INPUT, replace_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from function.errors import JobFailedError
    from function.validation.definitions import Definitions
    from function.workflow import Workflow

_LISTS = frozenset({("VHS_LoadImages", "directory"), ("VHS_LoadImagesPath", "directory")})
_BY_PATH = frozenset(
    {"VHS_LoadImagePath", "VHS_LoadImagesPath", "VHS_LoadVideoPath", "VHS_LoadVideoFFmpegPath", "VHS_LoadAudio"}
)

_DATA_URI = re.compile(r"data:(?P<media_type>[\w.+-]+/[\w.+-]+)?(?:;[\w=.-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Media:
    """One file that an input stands for.

    Attributes:
        node_id: The node.
        class_type: Its class.
        name: The input.
        value: What the workflow has for it.
        kind: What is in it, for people: `image`, `images` for one of a list, `video`, `audio`, `latent`, `file`.
        item: Its place in a list, else None.
        known: Whether we know that the node reads a file by this name; if not, a value that is no file is left alone.
        by_path: Whether the node takes paths, not names below the input directory.
    """

    node_id: str
    class_type: str
    name: str
    value: str = field(repr=False)  # it may be many megabytes, or hold a secret
    kind: str
    item: int | None = None
    known: bool = True
    by_path: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Node and input."""
        return self.node_id, self.name

    def placed(self, error: JobFailedError) -> JobFailedError:
        """An error of this file, in comfyui-api's words."""
        what = f"Failed to download {self.kind} for node {self.node_id}"
        return error.at(what, location=f"prompt.{self.node_id}.inputs.{self.name}")


def data_uri_head(value: str) -> re.Match[str] | None:
    """The beginning of a data URI up to its base64; None if it is none."""
    return _DATA_URI.match(value)


def media_inputs(workflow: Workflow, definitions: Definitions | None = None) -> Iterator[Media]:
    """Every file that the workflow's inputs stand for, and every `image` that perhaps does.

    Args:
        workflow: A parsed graph.
        definitions: The engine's node classes; they tell what an `image` of a node that we don't know is.
    """
    for node_id, node in workflow.items():
        class_type = node["class_type"]
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                yield from _media(workflow, node_id, name, value, definitions)
            elif _is_list(class_type, name, value):
                by_path = class_type in _BY_PATH
                for item, text in enumerate(value):
                    yield Media(node_id, class_type, name, text, "images", item, by_path=by_path)


def _media(workflow: Workflow, node_id: str, name: str, value: str, definitions: Definitions | None) -> Iterator[Media]:
    node = workflow[node_id]
    class_type = node["class_type"]
    saves = isinstance(node["inputs"].get(OUTPUT_INPUT), str)
    if kind := MEDIA_INPUTS.get((class_type, name)):
        yield Media(node_id, class_type, name, value, kind, by_path=class_type in _BY_PATH)
    elif name == CUSTOM_INPUT and not saves:
        definition = definitions.node(class_type) if definitions else None
        declared = definition.inputs.get(name) if definition else None
        if not declared or value not in declared.listed:
            by_path = declared is not None and declared.kind == "STRING"
            yield Media(node_id, class_type, name, value, "image", known=False, by_path=by_path)
    elif data_uri_head(value):
        yield Media(node_id, class_type, name, value, "file", known=False)


def _is_list(class_type: str, name: str, value: object) -> bool:
    texts = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    return texts and (class_type, name) in _LISTS


def with_values(workflow: Workflow, values: Mapping[Media, str]) -> Workflow:
    """The graph with other values for some files; a list stays one, with other items."""
    replacements: dict[tuple[str, str], Any] = {}
    for media, value in values.items():
        if media.item is None:
            replacements[media.place] = value
        else:
            items = replacements.setdefault(media.place, list(workflow[media.node_id]["inputs"][media.name]))
            items[media.item] = value
    return replace_inputs(workflow, replacements)


def without_lists(workflow: Workflow) -> Workflow:
    """The graph as the engine will see it as far as lists of files go: a list of two could be taken for a link."""
    return replace_inputs(workflow, {media.place: "" for media in media_inputs(workflow) if media.item is not None})

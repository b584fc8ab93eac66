"""Models that nodes name which we don't know: a file name that fits one object in storage. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from function.errors import ModelAmbiguousError
from function.file_inputs import LOADER_CLASSES
from function.models.references import ALL_SUFFIXES, ModelRef, check_reference, model_errors
from function.sources import is_url
from function.workflow import OUTPUT_INPUT, literal_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from function.workflow import Workflow

_MAX_NAME_CHARACTERS = 255
_SHOWN_CANDIDATES = 10


def names_custom_models(workflow: Workflow) -> bool:
    """Whether a node that we don't know has a value that looks like a model's file name."""
    return next(_custom_names(workflow), None) is not None


def custom_references(workflow: Workflow, keys: Sequence[str], *, allow_pickle: bool = False) -> tuple[ModelRef, ...]:
    """The files that such values name: each is the one object whose key ends with it.

    A value that fits no object is left to the engine: the file may have come with the node.

    Args:
        workflow: A parsed graph.
        keys: Every key under MODELS_URL.
        allow_pickle: As for `model_references`.

    Raises:
        ModelAmbiguousError: Several objects fit; they are listed.
        InputRefusedError: As for `model_references`.
    """
    return tuple(_references(workflow, keys, allow_pickle=allow_pickle))


def _references(workflow: Workflow, keys: Sequence[str], *, allow_pickle: bool) -> Iterator[ModelRef]:
    for node_id, name, value in _custom_names(workflow):
        with model_errors(node_id):
            reference = _find(node_id, name, value, keys)
            if reference:
                check_reference(reference, allow_pickle=allow_pickle)
        if reference:
            yield reference


def _custom_names(workflow: Workflow) -> Iterator[tuple[str, str, str]]:
    for node_id, class_type, name, value in literal_inputs(workflow):
        looks_like_one = len(value) <= _MAX_NAME_CHARACTERS and value.lower().endswith(ALL_SUFFIXES)
        if looks_like_one and class_type not in LOADER_CLASSES and name != OUTPUT_INPUT and not is_url(value):
            yield node_id, name, value


def _find(node_id: str, name: str, value: str, keys: Sequence[str]) -> ModelRef | None:
    fitting = [key for key in keys if "/" in key and f"/{key}".endswith(f"/{value}")]
    if value in fitting:
        fitting = [value]
    if len(fitting) > 1:
        shown = ", ".join(fitting[:_SHOWN_CANDIDATES]) + (", ..." if len(fitting) > _SHOWN_CANDIDATES else "")
        raise ModelAmbiguousError(
            f"node {node_id}, input {name}: {value!r} may be any of {shown}; name it with its folders",
            details={"candidates": fitting[:_SHOWN_CANDIDATES]},
        )
    if not fitting:
        return None
    folder, _, filename = fitting[0].partition("/")
    return ModelRef(folder, filename, node_id, name)

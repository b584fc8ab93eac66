"""What the embedded core refuses beyond the recorded cases, which test_engine_protocol.py replays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from function.engine.embedded.errors import MalformedPromptError
from function.engine.embedded.folders import folders_from
from function.engine.embedded.nodes.catalogue import NODES
from function.engine.embedded.options import parse_options
from function.engine.embedded.validation import Verdict, validate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def judge(tmp_path: Path) -> Any:
    """Validates against empty directories."""
    folders = folders_from(parse_options(["--base-directory", str(tmp_path)]))

    def judged(prompt: object, **more: Any) -> Verdict:
        return validate(prompt, NODES, folders, **more)

    return judged


def image(**inputs: object) -> dict[str, Any]:
    """An EmptyImage."""
    return {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0} | inputs}


def save(source: object, prefix: object = "x") -> dict[str, Any]:
    """A SaveImage."""
    return {"class_type": "SaveImage", "inputs": {"images": source, "filename_prefix": prefix}}


def test_values_are_converted_in_place(judge: Any) -> None:
    """Numeric text becomes a number before the cache key is made, a wrapped value is unwrapped."""
    prompt = {"1": image(width="64", height={"__value__": 3}), "2": save(["1", 0], 5)}
    assert judge(prompt).outputs == ("2",)
    assert (prompt["1"]["inputs"]["width"], prompt["1"]["inputs"]["height"]) == (64, 3)
    assert prompt["2"]["inputs"]["filename_prefix"] == "5"


def test_targets_limit_the_outputs(judge: Any) -> None:
    """Only wanted outputs are judged and run."""
    prompt = {"1": image(), "2": save(["1", 0]), "3": save(["9", 0])}
    verdict = judge(prompt, targets=["2"])
    assert (verdict.outputs, verdict.node_errors, verdict.error) == (("2",), {}, None)


def test_nodes_outside_the_outputs_are_not_judged(judge: Any) -> None:
    """A bad value in a node that no output needs is no error."""
    assert judge({"1": image(), "2": save(["1", 0]), "3": image(width=-5)}).error is None


def test_shared_error_names_both_outputs(judge: Any) -> None:
    """A node that two outputs need is reported once, with both."""
    verdict = judge({"1": image(width=0), "2": save(["1", 0]), "3": save(["1", 0])})
    assert verdict.node_errors["1"]["dependent_outputs"] == ["2", "3"]
    assert len(verdict.node_errors["1"]["errors"]) == 1


def test_any_type_fits(judge: Any) -> None:
    """A socket of type `*` takes every type."""
    assert judge({"1": image(), "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}).error is None


def test_optional_input_may_be_missing_and_is_judged(judge: Any) -> None:
    """A missing optional input is fine, a wrong one is not."""
    inputs = {"destination": ["1", 0], "source": ["1", 0], "x": 0, "y": 0, "resize_source": False}
    prompt = {"1": image(), "2": {"class_type": "ImageCompositeMasked", "inputs": inputs}, "3": save(["2", 0])}
    assert judge(prompt).error is None
    inputs["mask"] = ["1", 0]
    assert judge(prompt).node_errors["2"]["errors"][0]["type"] == "return_type_mismatch"


def test_image_outside_the_input_directory(judge: Any, tmp_path: Path) -> None:
    """An image name that leads elsewhere is invalid even where a file is."""
    (tmp_path / "secret.png").touch()
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "../secret.png"}}, "2": save(["1", 0])}
    error = judge(prompt).node_errors["1"]["errors"][0]
    assert (error["type"], error["details"]) == (
        "custom_validation_failed",
        "image - Invalid image file: ../secret.png",
    )


def test_long_lists_are_not_repeated(judge: Any, tmp_path: Path) -> None:
    """Of more than twenty choices the answer tells the number only."""
    folder = tmp_path / "models" / "vae"
    folder.mkdir(parents=True)
    for index in range(20):
        (folder / f"{index}.safetensors").touch()
    prompt = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "none"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    error = judge(prompt).node_errors["1"]["errors"][0]
    assert error["details"] == "vae_name: 'none' not in (list of length 21)"
    assert error["extra_info"]["input_config"] is None


@pytest.mark.parametrize("prompt", [[1, 2], "abc", None, {"nodes": 1}, {"1": ["class_type"]}])
def test_what_is_no_graph(judge: Any, prompt: object) -> None:
    """What is no mapping of nodes is malformed."""
    with pytest.raises(MalformedPromptError):
        judge(prompt)


@pytest.mark.parametrize("link", [[1, 0], [["1"], 0], ["1", "0"], ["1", 7], [None, None]])
def test_odd_links(judge: Any, link: list[object]) -> None:
    """A link to nothing is an error of its node, never of the server."""
    verdict = judge({"1": image(), "2": save(link)})
    assert verdict.error is not None
    assert verdict.node_errors["2"]["errors"][0]["type"] == "exception_during_validation"

"""The client's runs in an engine of its own: the embedded core or, with COMFY_HOME set, that ComfyUI."""

from __future__ import annotations

import io
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from function.engine.api import EngineApi
from function.engine.client import EngineClient, RunLimits, new_prompt_id
from function.errors import InvalidWorkflowError, NodeFailedError
from tests.support.engine import case, comfyui_only, engine_of, prepared, recorded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.engine.client import EngineRun
    from function.engine.previews import Preview
    from function.telemetry import Progress
    from tests.support.engine import EmbeddedEngine


SHY = """
import folder_paths

class Shy:
    FUNCTION, CATEGORY, RETURN_TYPES, OUTPUT_NODE = "show", "test", (), True

    @classmethod
    def INPUT_TYPES(cls):
        names = folder_paths.get_filename_list("loras")
        return {"required": {"lora": (names, {"default": names[0]})}}

    def show(self, lora):
        return {"ui": {"text": [lora]}}

NODE_CLASS_MAPPINGS = {"Shy": Shy}
"""
"""A class that can't list its inputs while its folder is empty."""


def run(engine: EmbeddedEngine, workflow: dict[str, Any], **observers: Any) -> EngineRun:
    """Run a workflow to its end."""
    limits = RunLimits(deadline=time.monotonic() + 60)
    with closing(EngineClient("127.0.0.1", engine.port)) as client:
        return client.run(workflow, prompt_id=new_prompt_id(), limits=limits, **observers)


def test_a_run_tells_how_far_it_is(engine: EmbeddedEngine) -> None:
    """Each node in turn, the upscale's tiles, and at the end all that the output node needs; then from the cache."""
    workflow = case("10_upscale_srvgg") | {"unneeded": case("01_empty_save")["1"]}
    for _ in range(2):
        seen: list[Progress] = []
        files = run(engine, workflow, outputs=["4"], on_progress=seen.append).files
        assert [file.node_id for file in files] == ["4"]
        assert {step.nodes_total for step in seen} == {4}
        assert (seen[-1].fraction, seen[-1].nodes_done) == (1.0, 4)
        fractions = [step.fraction for step in seen]
        assert fractions == sorted(fractions)
        assert max(step.fraction for step in seen[:1]) < 1 or seen[0].nodes_done == 4


def test_asking_for_previews_disturbs_no_run(engine: EmbeddedEngine) -> None:
    """A workflow without a sampler has none."""
    previews: list[Preview] = []
    assert run(engine, case("01_empty_save"), on_preview=previews.append).files
    assert previews == []


@comfyui_only
def test_previews_of_a_sampler(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """Pictures that name their node; 0.3.64 sends them only under this flag, newer cores to whoever asks."""
    engine = engine_factory("--preview-method", "latent2rgb")
    workflow = recorded("run_preview_meta")["post"]["request_json"]["prompt"]
    previews: list[Preview] = []
    assert run(engine, workflow, on_preview=previews.append).files
    assert {(preview.node_id, preview.media_type) for preview in previews} == {("4", "image/jpeg")}
    with Image.open(io.BytesIO(previews[-1].data)) as picture:
        assert picture.format == "JPEG"
    assert run(engine, workflow | {}).files


@pytest.mark.parametrize("bad", ["unknown class", "missing input", "bad value"])
def test_a_refusal_names_the_node(engine: EmbeddedEngine, bad: str) -> None:
    """Whatever the version calls it."""
    workflow = case("01_empty_save")
    if bad == "unknown class":
        workflow["1"]["class_type"] = "NoSuchNode"
    elif bad == "missing input":
        del workflow["1"]["inputs"]["width"]
    else:
        workflow["1"]["inputs"]["width"] = 10**6
    with pytest.raises(InvalidWorkflowError, match=r"(?i)node.*(NoSuchNode|EmptyImage)"):
        run(engine, workflow)


@comfyui_only
def test_a_cycle_that_only_the_run_finds_fails_it(engine: EmbeddedEngine) -> None:
    """Of inputs that no node declares; ComfyUI's record calls it a success."""
    workflow = case("01_empty_save")
    workflow["1"]["inputs"]["extra"] = ["3", 0]
    workflow["3"] = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
    with pytest.raises(NodeFailedError, match="DependencyCycleError"):
        run(engine, workflow)
    assert run(engine, case("01_empty_save")).files


def test_a_class_that_the_engine_does_not_have_is_told_from_others(engine: EmbeddedEngine) -> None:
    """By asking for it alone."""
    with closing(EngineApi("127.0.0.1", engine.port)) as api:
        assert [api.lacks_class(name) for name in ("SaveImage", "NoSuchNode")] == [False, True]


@comfyui_only
def test_a_class_that_the_engine_left_out_of_its_description_is_no_class_that_it_lacks(
    tmp_path: Path, model_files: Path
) -> None:
    """It runs once its model is there."""
    directories = prepared(tmp_path / "base", model_files)
    for folder in ("custom_nodes", "models/loras"):
        (directories.base / folder).mkdir(parents=True, exist_ok=True)
    (directories.base / "custom_nodes" / "shy.py").write_text(SHY)
    for lora in (directories.models / "loras").iterdir():
        lora.unlink()
    engine = engine_of(directories, ["--whitelist-custom-nodes", "shy.py"])
    try:
        engine.start()
        with closing(EngineApi("127.0.0.1", engine.port)) as api:
            assert "Shy" not in api.object_info(timeout_seconds=60)
            assert not api.lacks_class("Shy")
        (directories.models / "loras" / "a.safetensors").touch()
        workflow = {"1": {"class_type": "Shy", "inputs": {"lora": "a.safetensors"}}}
        assert run(engine, workflow).texts == {"1": ["a.safetensors"]}
    finally:
        engine.stop()

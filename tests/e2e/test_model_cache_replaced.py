"""The model cache through the whole function."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageChops

from tests.support.engine import DATA, case

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory, FunctionProcess

REPLACED, OTHER = "tiny_srvgg_x2.safetensors", "tiny_esrgan_x2.safetensors"


def two_upscalers() -> dict[str, Any]:
    """One image through two models: nodes 2 and 5 load them, 4 and 7 save."""
    graph = case("10_upscale_srvgg")
    second: dict[str, Any] = {
        "5": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": OTHER}},
        "6": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["5", 0], "image": ["1", 0]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "other"}},
    }
    return {**graph, **second}


def largest_difference(path: Path, reference: str) -> int:
    """Largest difference of any channel of any pixel to what the real core wrote for a case."""
    images = [
        Image.open(io.BytesIO(file.read_bytes())).convert("RGB") for file in (path, DATA / "cases/ref" / reference)
    ]
    return max(high for _low, high in ImageChops.difference(*images).getextrema())


def run(function: FunctionProcess, event_id: str) -> Path:
    """One job; the image of the first model."""
    manifest = function.send_event(event_id, {"workflow": two_upscalers()}).json["data"]
    assert manifest["status"] == "completed"
    return function.store / "results/outputs" / manifest["job_id"] / "1" / "c10_00001_.png"


def cached_loaders(function: FunctionProcess) -> list[set[str]]:
    """Which of the two loaders the engine did not run, for each of its prompts."""
    messages = [dict(entry["status"]["messages"]) for entry in function.engine_history().values()]
    return [{"2", "5"} & set(message["execution_cached"]["nodes"]) for message in messages]


@pytest.fixture
def function(function_factory: FunctionFactory, model_files: Path, request: pytest.FixtureRequest) -> FunctionProcess:
    """A function with an input image and two upscalers in storage."""
    process: FunctionProcess = function_factory(MODEL_REVALIDATE_SECONDS=request.param)
    process.put_upload("in_64x48.png")
    for name in (REPLACED, OTHER):
        process.put_model("upscale_models", model_files / "upscale_models" / name)
    return process


@pytest.mark.parametrize("function", ["0"], indirect=True)
def test_replaced_object(function: FunctionProcess) -> None:
    """A model replaced under its key gives new pixels in the very next job, and no other model is loaded again."""
    assert largest_difference(run(function, "e1"), "c10_00001_.png") <= 1
    run(function, "e2")
    models = function.store / "models/upscale_models"
    shutil.copyfile(models / OTHER, models / REPLACED)
    assert largest_difference(run(function, "e3"), "c11_00001_.png") <= 1
    assert cached_loaders(function) == [set(), {"2", "5"}, {"5"}]


@pytest.mark.parametrize("function", ["never"], indirect=True)
def test_immutable_models(function: FunctionProcess) -> None:
    """Where models never change, a replaced object is not even noticed, nor is storage missed."""
    run(function, "e1")
    (function.store / "models").rename(function.store / "gone")
    assert largest_difference(run(function, "e2"), "c10_00001_.png") <= 1
    assert cached_loaders(function) == [set(), {"2", "5"}]

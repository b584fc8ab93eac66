"""Files by ComfyUI's rules: models that appear, change and go, inputs, outputs and their numbers, uploads, `/view`.

The situations and their outcomes are those of tests/data/comfyui/recorded/record4_files.json.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.support.engine import RECORDED_VERSION, as_recorded, engine_version

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engine import EmbeddedEngine, Run

FOLDERS = {"VAELoader": "vae", "UpscaleModelLoader": "upscale_models"}


@pytest.fixture
def weights(engine: EmbeddedEngine, model_files: Path, request: pytest.FixtureRequest) -> Path:
    """A place for an upscaler of the test's own; nothing is there yet."""
    del model_files
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return engine.directories.models / "upscale_models" / f"{name}.safetensors"


def upscale(model: str, prefix: str, **extra: object) -> dict[str, Any]:
    """A workflow that upscales the shared input image."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "in_64x48.png"}},
        "2": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": model, **extra}},
        "3": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": prefix}},
    }


def pixels(engine: EmbeddedEngine, run: Run, node_id: str = "4") -> bytes:
    """What the run saved."""
    assert run.status == "success"
    return engine.image(run.images(node_id)[0]).tobytes()


def put(model_files: Path, source: str, target: Path) -> None:
    """Make a model file appear, whole."""
    part = target.with_suffix(".part")
    shutil.copyfile(model_files / "upscale_models" / source, part)
    part.rename(target)


def test_new_model_is_seen_at_once(engine: EmbeddedEngine, model_files: Path, weights: Path) -> None:
    """A model file is listed and used as soon as it has its name; a `.part` file is neither."""
    weights.with_suffix(".part").write_bytes(b"")
    assert not [name for name in engine.get("/models/upscale_models").json if name.startswith(weights.stem)]
    put(model_files, "tiny_srvgg_x2.safetensors", weights)
    assert weights.name in engine.get("/models/upscale_models").json
    assert engine.run(upscale(weights.name, "new")).status == "success"


def test_model_in_a_new_subfolder(engine: EmbeddedEngine, model_files: Path, weights: Path) -> None:
    """A model in a folder that did not exist before is listed with its folder's name."""
    nested = weights.with_suffix("") / "deep.safetensors"
    nested.parent.mkdir()
    put(model_files, "tiny_srvgg_x2.safetensors", nested)
    name = f"{nested.parent.name}/{nested.name}"
    assert name in engine.get("/models/upscale_models").json
    assert engine.run(upscale(name, "nested")).status == "success"


def test_half_a_model(engine: EmbeddedEngine, model_files: Path, weights: Path) -> None:
    """Half a file fails in the loader with SafetensorError, and the failure isn't kept once the file is whole."""
    whole = (model_files / "upscale_models" / "tiny_srvgg_x2.safetensors").read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    failed = engine.run(upscale(weights.name, "half"))
    assert failed.error["exception_type"].endswith("SafetensorError")
    assert failed.error["exception_message"] == (
        "Error while deserializing header: incomplete metadata, file not fully covered\n"
    )
    weights.write_bytes(whole)
    assert engine.run(upscale(weights.name, "half")).status == "success"


def test_replaced_model_stays_stale(engine: EmbeddedEngine, model_files: Path, weights: Path) -> None:
    """A model replaced under its name is not noticed until the cache is dropped."""
    put(model_files, "tiny_srvgg_x2.safetensors", weights)
    old = pixels(engine, engine.run(upscale(weights.name, "stale")))
    put(model_files, "tiny_esrgan_x2.safetensors", weights)
    again = engine.run(upscale(weights.name, "stale2"))
    assert (again.cached, pixels(engine, again)) == (["1", "2", "3"], old)
    engine.free_memory()
    assert pixels(engine, engine.run(upscale(weights.name, "stale3"))) != old


def test_unknown_input_renews_a_loader(engine: EmbeddedEngine, model_files: Path, weights: Path) -> None:
    """An input that a loader doesn't declare is part of its cache key: with a new value the new file is read."""
    put(model_files, "tiny_srvgg_x2.safetensors", weights)
    old = pixels(engine, engine.run(upscale(weights.name, "etag", comfyfn_etag="1")))
    put(model_files, "tiny_esrgan_x2.safetensors", weights)
    renewed = engine.run(upscale(weights.name, "etag", comfyfn_etag="2"))
    assert renewed.cached == ["1"]
    assert pixels(engine, renewed) != old
    assert engine.run(upscale(weights.name, "etag", comfyfn_etag="2")).cached == ["1", "2", "3", "4"]


def test_cache_keeps_the_last_prompt_only(engine: EmbeddedEngine) -> None:
    """A prompt without a node drops that node's result."""
    prompt = upscale("tiny_srvgg_x2.safetensors", "last")
    engine.run(prompt)
    engine.run(
        {key: prompt[key] for key in ("1",)} | {"9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    )
    assert engine.run(prompt).cached == ["1"]


def test_deleted_model(engine: EmbeddedEngine, model_files: Path, weights: Path) -> None:
    """A schema node goes on from the cache when its file is gone, and fails once the cache is dropped.

    Newer cores look for its file when the prompt is posted, as those of other nodes.
    """
    put(model_files, "tiny_srvgg_x2.safetensors", weights)
    engine.run(upscale(weights.name, "deleted"))
    weights.unlink()
    if engine_version() != RECORDED_VERSION:
        answer = engine.post("/prompt", {"prompt": upscale(weights.name, "deleted2")})
        assert answer.json["node_errors"]["2"]["errors"][0]["type"] == "value_not_in_list"
        return
    assert engine.run(upscale(weights.name, "deleted2")).status == "success"
    engine.free_memory()
    error = engine.run(upscale(weights.name, "deleted")).error
    assert error["exception_type"] == "FileNotFoundError"
    assert error["exception_message"] == f"Model in folder 'upscale_models' with filename '{weights.name}' not found.\n"


def test_deleted_model_of_a_v1_loader(engine: EmbeddedEngine, model_files: Path) -> None:
    """VAELoader's file is looked for at every POST, cached or not."""
    path = engine.directories.models / "vae" / "gone.safetensors"
    prompt = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": path.name}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    shutil.copyfile(model_files / "vae" / "tiny_taesd.safetensors", path)
    assert engine.run(prompt).status == "success"
    path.unlink()
    answer = engine.post("/prompt", {"prompt": prompt})
    assert answer.status == 400
    assert answer.json["node_errors"]["1"]["errors"][0]["type"] == "value_not_in_list"


def test_input_image_is_read_again(engine: EmbeddedEngine) -> None:
    """An input image replaced under its name is noticed: LoadImage looks at the content."""
    path = engine.directories.input / "changing.png"
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": path.name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "changing"}},
    }
    seen = []
    for color in ("red", "blue"):
        Image.new("RGB", (8, 8), color).save(path)
        seen.append(pixels(engine, engine.run(prompt), "2"))
    assert seen[0] != seen[1]


def saved(prefix: str, color: int) -> dict[str, Any]:
    """A workflow that saves one small image."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def test_deleted_output(engine: EmbeddedEngine) -> None:
    """A cached save node names its file even when it is gone; the next saved image takes the freed name."""
    first = engine.run(saved("lost", 1)).images("2")
    (engine.directories.output / first[0]["filename"]).unlink()
    assert engine.run(saved("lost", 1)).images("2") == first
    assert engine.get(f"/view?filename={first[0]['filename']}&type=output").status == 404
    assert engine.run(saved("lost", 2)).images("2") == first


def test_numbers_of_outputs(engine: EmbeddedEngine) -> None:
    """The next number is one above the highest in the folder, whatever was deleted below."""
    names = [engine.run(saved("count", color)).images("2")[0]["filename"] for color in range(3)]
    (engine.directories.output / names[1]).unlink()
    names.append(engine.run(saved("count", 9)).images("2")[0]["filename"])
    assert names == ["count_00001_.png", "count_00002_.png", "count_00003_.png", "count_00004_.png"]


def test_saved_prompt(engine: EmbeddedEngine) -> None:
    """A saved image carries the graph and the texts that came with the prompt."""
    run = engine.run(saved("texts", 3), extra_data={"extra_pnginfo": {"workflow": {"a": 1}}})
    texts = engine.image(run.images("2")[0]).info
    assert texts["workflow"] == '{"a": 1}'
    assert "EmptyImage" in texts["prompt"]


def test_prefix_with_folder_and_values(engine: EmbeddedEngine) -> None:
    """A prefix may name folders and hold the image's size."""
    item = engine.run(saved("a/b/%width%x%height%", 4)).images("2")[0]
    assert item == {"filename": "16x16_00001_.png", "subfolder": "a/b", "type": "output"}


def decoded(latent: dict[str, Any]) -> dict[str, Any]:
    """A workflow that makes a picture of a node's latent."""
    return {
        "1": latent,
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_taesd.safetensors"}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "decoded"}},
    }


def test_a_saved_latent_can_be_loaded(engine: EmbeddedEngine) -> None:
    """It is a safetensors file with the graph in it, is listed under `latents`, and gives the same picture again."""
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}}
    run = engine.run(decoded(empty) | {"5": {"class_type": "SaveLatent", "inputs": LATENT_INPUTS}})
    assert run.history["outputs"]["5"] == {
        "latents": [{"filename": "kept_00001_.latent", "subfolder": "latents", "type": "output"}]
    }
    file = engine.directories.output / "latents" / "kept_00001_.latent"
    with safe_open(file, "np") as opened:
        assert opened.get_tensor("latent_tensor").shape == (1, 4, 6, 8)
        assert "EmptyLatentImage" in opened.metadata()["prompt"]
    shutil.copyfile(file, engine.directories.input / "kept.latent")
    loaded = engine.run(decoded({"class_type": "LoadLatent", "inputs": {"latent": "kept.latent"}}))
    assert pixels(engine, loaded) == pixels(engine, run)
    refused = engine.post(
        "/prompt", {"prompt": decoded({"class_type": "LoadLatent", "inputs": {"latent": "no.latent"}})}
    )
    details = refused.json["node_errors"]["1"]["errors"][0]["details"]
    assert (refused.status, details) == (400, "latent - Invalid latent file: no.latent")


LATENT_INPUTS = {"samples": ["1", 0], "filename_prefix": "latents/kept"}


def test_animated_images(engine: EmbeddedEngine) -> None:
    """An animated PNG has every frame and its time; the history says that it is animated."""
    prompt = {
        "1": saved("", 1)["1"],
        "2": saved("", 0xFFFFFF)["1"],
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {
            "class_type": "SaveAnimatedPNG",
            "inputs": {"images": ["3", 0], "filename_prefix": "moving", "fps": 4.0, "compress_level": 4},
        },
    }
    shown = engine.run(prompt).history["outputs"]["4"]
    assert shown == {
        "images": [{"filename": "moving_00001_.png", "subfolder": "", "type": "output"}],
        "animated": [True],
    }
    content = (engine.directories.output / "moving_00001_.png").read_bytes()
    assert b"comfprompt\0" in content
    with Image.open(engine.directories.output / "moving_00001_.png") as image:
        assert (image.n_frames, image.info["duration"]) == (2, 250)
        image.seek(1)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@as_recorded("newer cores can do it")
@pytest.mark.parametrize(
    ("kind", "first", "second", "more"),
    [
        ("ImageCompositeMasked", "destination", "source", {"x": 0, "y": 0, "resize_source": False}),
        ("ImageBlend", "image1", "image2", {"blend_factor": 0.5, "blend_mode": "multiply"}),
        ("ImageBatch", "image1", "image2", {}),
    ],
)
def test_colours_don_t_go_onto_an_image_with_alpha(
    engine: EmbeddedEngine, kind: str, first: str, second: str, more: dict[str, Any]
) -> None:
    """The node fails: 0.3.64 can't do it."""
    prompt = {
        "1": saved("", 1)["1"],
        "2": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 16, "height": 16}},
        "3": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["1", 0], "alpha": ["2", 0]}},
        "4": {"class_type": kind, "inputs": {first: ["3", 0], second: ["1", 0], **more}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    error = engine.run(prompt).error
    assert (error["node_id"], error["exception_type"]) == ("4", "RuntimeError")


@as_recorded("newer cores know the node again under another id")
def test_a_node_that_may_answer_with_its_id_is_cached_under_it(engine: EmbeddedEngine) -> None:
    """The same graph under other ids is served from the cache, except for such a node and what depends on it."""
    prompt = {
        "1": saved("", 1)["1"],
        "2": {"class_type": "GetImageSize", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    engine.run(prompt)
    renamed = {
        "1": prompt["1"],
        "8": prompt["2"],
        "9": {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}},
    }
    assert engine.run(renamed).cached == ["1"]
    assert sorted(engine.run(renamed).cached) == ["1", "8", "9"]


def multipart(**fields: str | tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form's body and headers; a pair is a file."""
    body = b""
    for name, value in fields.items():
        filename, content = value if isinstance(value, tuple) else ("", value.encode())
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        body += f"--frontier\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--frontier--\r\n", {"Content-Type": "multipart/form-data; boundary=frontier"}


def upload(engine: EmbeddedEngine, content: bytes, filename: str = "up.png", **fields: str) -> Any:
    """The answer to one upload."""
    body, headers = multipart(image=(filename, content), **fields)
    return engine.post("/upload/image", body, headers=headers)


def test_upload(engine: EmbeddedEngine) -> None:
    """An upload lands in the input directory; the same bytes keep the name, others get a number, unless overwritten."""
    assert upload(engine, b"one").json == {"name": "up.png", "subfolder": "", "type": "input"}
    assert upload(engine, b"one").json["name"] == "up.png"
    assert upload(engine, b"two").json["name"] == "up (1).png"
    assert upload(engine, b"three", overwrite="true").json["name"] == "up.png"
    assert (engine.directories.input / "up.png").read_bytes() == b"three"
    assert upload(engine, b"\r\n--x\r\n", "deep.png", subfolder="s").json["subfolder"] == "s"
    assert (engine.directories.input / "s" / "deep.png").read_bytes() == b"\r\n--x\r\n"


def test_upload_outside(engine: EmbeddedEngine) -> None:
    """A subfolder that leads out of the input directory is refused."""
    assert upload(engine, b"x", subfolder="../..").status == 400


def test_view_of_a_range(engine: EmbeddedEngine) -> None:
    """Saved files are sent with their type, and in ranges where asked for."""
    (engine.directories.output / "range.png").write_bytes(b"0123456789")
    whole = engine.get("/view?filename=range.png&type=output")
    assert (whole.headers["content-type"], whole.body) == ("image/png", b"0123456789")
    part = engine.request("GET", "/view?filename=range.png&type=output", headers={"Range": "bytes=2-4"})
    assert (part.status, part.body) == (206, b"234")


@pytest.mark.parametrize("query", ["", "?filename=", "?filename=none.png", "?filename=x&type=nowhere"])
def test_view_of_nothing(engine: EmbeddedEngine, query: str) -> None:
    """What is no file is 404, what is no place 400."""
    assert engine.get(f"/view{query}").status in {400, 404}

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from function.errors import InputRefusedError
from function.file_inputs import LOADER_INPUTS
from function.models.references import ModelRef, localise_models, model_references, stamp_loaders
from function.sources import parse_allow_list

CASES = Path(__file__).parents[1] / "data/comfyui/cases"
OBJECT_INFO = CASES.parent / "recorded/object_info.json"


def graph(class_type: str, **inputs: object) -> dict[str, dict[str, object]]:
    """A workflow of one node, 4."""
    return {"4": {"class_type": class_type, "inputs": inputs}}


def files(class_type: str, **inputs: object) -> list[str]:
    """Keys of the models that one node names."""
    return [reference.key for reference in model_references(graph(class_type, **inputs))]


@pytest.mark.parametrize(("loader", "folder"), LOADER_INPUTS.items(), ids=str)
def test_every_loader_of_the_table(loader: tuple[str, str], folder: str) -> None:
    """A file that a loader's input names is a reference into the loader's folder, naming node and input."""
    class_type, name = loader
    filename = "sub/m.yaml" if folder == "configs" else "sub/m.safetensors"
    assert model_references(graph(class_type, **{name: filename})) == (ModelRef(folder, filename, "4", name),)


@pytest.mark.parametrize(
    ("class_type", "names"),
    [
        ("DualCLIPLoader", ["clip_name1", "clip_name2"]),
        ("TripleCLIPLoader", ["clip_name1", "clip_name2", "clip_name3"]),
        ("QuadrupleCLIPLoader", ["clip_name1", "clip_name2", "clip_name3", "clip_name4"]),
        ("CheckpointLoader", ["ckpt_name", "config_name"]),
        ("LTXAVTextEncoderLoader", ["ckpt_name", "text_encoder"]),
    ],
)
def test_loaders_with_several_files(class_type: str, names: list[str]) -> None:
    """A loader with several file inputs has all of them in the table."""
    assert sorted(name for loader, name in LOADER_INPUTS if loader == class_type) == names


def test_table_names_real_inputs() -> None:
    """Every loader that the recorded ComfyUI knows has the table's input."""
    recorded = json.loads(OBJECT_INFO.read_text())
    known = [(class_type, name) for class_type, name in LOADER_INPUTS if class_type in recorded]
    for class_type, name in known:
        declared = recorded[class_type]["input"]
        assert name in declared.get("required", {}) or name in declared.get("optional", {})
    assert known


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("taesd", ["vae_approx/taesd_encoder.safetensors", "vae_approx/taesd_decoder.safetensors"]),
        ("taef2", ["vae_approx/taef2_encoder.safetensors", "vae_approx/taef2_decoder.safetensors"]),
        ("pixel_space", []),
        ("taehv.safetensors", ["vae_approx/taehv.safetensors"]),
        ("lighttaew2_2.safetensors", ["vae_approx/lighttaew2_2.safetensors"]),
        ("taesd_mine.safetensors", ["vae/taesd_mine.safetensors"]),
    ],
)
def test_special_names_of_the_vae_loader(name: str, expected: list[str]) -> None:
    """VAELoader's built-in names stand for pairs, for nothing, or for files of vae_approx."""
    assert files("VAELoader", vae_name=name) == expected


@pytest.mark.parametrize("value", ["[None]", "None", ["7", 0], 3, None])
def test_inputs_that_name_no_file(value: object) -> None:
    """A value for "no file", a link and anything but text name no model."""
    assert files("TrainLoraNode", existing_lora=value) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat, embedding:good, dog", ["embeddings/good.safetensors"]),
        (
            "embedding:sub/one.safetensors\nembedding:two",
            ["embeddings/sub/one.safetensors", "embeddings/two.safetensors"],
        ),
        ("(embedding:weighted:1.2)", ["embeddings/weighted.safetensors"]),
        ("embedding:bare:1.2 and ((embedding:twice))", ["embeddings/bare.safetensors", "embeddings/twice.safetensors"]),
        ("embedding:v1.5", ["embeddings/v1.5.safetensors"]),
        ("embedding: nothing", []),
        ("reembedding:no", []),
    ],
)
def test_embeddings_in_texts(text: str, expected: list[str]) -> None:
    """`embedding:NAME` in a prompt's text is a reference into embeddings, .safetensors unless it says otherwise."""
    assert files("CLIPTextEncode", text=text) == expected


def test_embeddings_are_optional() -> None:
    """A job runs without an embedding, as in ComfyUI, but not without a checkpoint."""
    (embedding,) = model_references(graph("CLIPTextEncode", text="embedding:x"))
    (checkpoint,) = model_references(graph("CheckpointLoaderSimple", ckpt_name="x.safetensors"))
    assert (embedding.optional, checkpoint.optional) == (True, False)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "a/../../x.safetensors",
        "/etc/x.safetensors",
        "a//x.safetensors",
        "a\\x.safetensors",
        "C:x.safetensors",
        "a\0.safetensors",
        "\ud800.safetensors",
        "n" * 256 + ".safetensors",
        "d/" * 600 + "x.safetensors",
    ],
)
def test_names_that_leave_their_folder(name: str) -> None:
    """A name that is no plain path inside its folder is refused, naming node and input."""
    with pytest.raises(InputRefusedError, match="node 4: input ckpt_name"):
        files("CheckpointLoaderSimple", ckpt_name=name)


def test_embedding_that_leaves_its_folder() -> None:
    """A traversal hidden in a prompt's text is refused too."""
    with pytest.raises(InputRefusedError, match="node 4: input text"):
        files("CLIPTextEncode", text="embedding:../../secret")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".PTH"])
def test_pickle_formats_are_refused(suffix: str) -> None:
    """A file format that can run code is refused in one line that says what is allowed, and names the setting."""
    with pytest.raises(InputRefusedError, match=r"can run code.*allowed are \.safetensors \.sft,.*ALLOW_PICKLE_MODELS"):
        files("UpscaleModelLoader", model_name=f"4x{suffix}")


def test_pickle_formats_can_be_allowed() -> None:
    """A caller may allow pickle formats."""
    workflow = graph("UpscaleModelLoader", model_name="4x.pth")
    assert [reference.filename for reference in model_references(workflow, allow_pickle=True)] == ["4x.pth"]


def test_other_files_are_refused() -> None:
    """A file that is no model is refused."""
    with pytest.raises(InputRefusedError, match="is no model"):
        files("LoraLoader", lora_name="notes.txt")


def test_recorded_workflows() -> None:
    """The references of a recorded workflow are its loader's file."""
    workflow = json.loads((CASES / "12_vae_roundtrip.json").read_text())
    assert model_references(workflow) == (ModelRef("vae", "tiny_taesd.safetensors", "2", "vae_name"),)


def test_stamp_changes_with_the_etag() -> None:
    """A loader's stamp changes when its file does, and the given graph stays as it was."""
    workflow = graph("VAELoader", vae_name="x.safetensors")
    (reference,) = model_references(workflow)
    stamps = [stamp_loaders(workflow, {reference: etag})["4"]["inputs"]["comfyfn_etag"] for etag in ("a", "b", "a")]
    assert stamps[0] == stamps[2] != stamps[1]
    assert workflow == graph("VAELoader", vae_name="x.safetensors")


def test_stamp_covers_every_file_of_a_node() -> None:
    """A node that names two files has one stamp that changes with either, whatever the order of the mapping."""
    workflow = graph("DualCLIPLoader", clip_name1="a.safetensors", clip_name2="b.safetensors")
    one, two = model_references(workflow)

    def stamp(etags: dict[ModelRef, str]) -> str:
        return str(stamp_loaders(workflow, etags)["4"]["inputs"]["comfyfn_etag"])

    assert stamp({one: "x", two: "y"}) == stamp({two: "y", one: "x"})
    assert len({stamp({one: "x", two: "y"}), stamp({one: "z", two: "y"}), stamp({one: "x", two: "z"})}) == 3


def test_stamp_of_a_text_with_an_embedding() -> None:
    """The node whose text names an embedding is stamped; a node without models is not."""
    workflow = {**graph("CLIPTextEncode", text="embedding:x"), "5": {"class_type": "EmptyImage", "inputs": {}}}
    (reference,) = model_references(workflow)
    stamped = stamp_loaders(workflow, {reference: "e"})
    assert stamped["4"]["inputs"]["comfyfn_etag"] == "e"
    assert stamped["5"]["inputs"] == {}


ALLOW = parse_allow_list("models.example, s3://bucket")


def url_references(class_type: str, **inputs: object) -> tuple[ModelRef, ...]:
    """References of one node, with an allow-list."""
    return model_references(graph(class_type, **inputs), allow=ALLOW)


def test_a_url_in_a_loader_names_a_file_of_the_loaders_folder() -> None:
    """Its local name is the same for the same URL, other for another, and ends as the URL's path does."""
    url = "https://models.example/sd/XL%20base.safetensors"
    (reference,) = url_references("CheckpointLoaderSimple", ckpt_name=url)
    assert (reference.folder, reference.source_url) == ("checkpoints", url)
    assert re.fullmatch(r"[0-9a-f]{16}-XL_base\.safetensors", reference.filename)
    (same,) = url_references("CheckpointLoaderSimple", ckpt_name=f"{url}?x=1")
    (other,) = url_references("CheckpointLoaderSimple", ckpt_name=url.replace("/sd/", "/xl/"))
    assert same.filename == reference.filename != other.filename


@pytest.mark.parametrize(("loader", "folder"), LOADER_INPUTS.items(), ids=str)
def test_every_loader_of_the_table_takes_urls(loader: tuple[str, str], folder: str) -> None:
    """What comfyui-api takes, and more; the input then names the local file."""
    class_type, name = loader
    suffix = "yaml" if folder == "configs" else "safetensors"
    workflow = graph(class_type, **{name: f"s3://bucket/any where/taesd.{suffix}"})
    (reference,) = model_references(workflow, allow=ALLOW)
    assert reference.folder == folder
    assert localise_models(workflow, [reference])["4"]["inputs"] == {name: reference.filename}


def test_a_secret_in_a_url_stays_out_of_names_and_texts() -> None:
    """Neither the local name, nor the `repr`, nor the rewritten graph tells the query."""
    workflow = graph("VAELoader", vae_name="https://models.example/m.safetensors?token=s3cr3t")
    references = model_references(workflow, allow=ALLOW)
    assert "s3cr3t" not in f"{references} {references[0].key} {localise_models(workflow, references)}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://other.example/s3cr3t.safetensors", "add other.example to MODEL_URL_ALLOW"),
        ("http://models.example/m.safetensors", "to MODEL_URL_ALLOW"),
        ("s3://other/m.safetensors", "add s3://other to MODEL_URL_ALLOW"),
        ("https://me:s3cr3t@models.example/m.safetensors", "MODEL_URL_CREDENTIALS"),
        ("https://models.example/../m.safetensors", "not plain"),
        ("ftp://models.example/m.safetensors", "neither with https"),
        ("https://models.example/api/download/7?token=s3cr3t", "Content-Disposition"),
        ("https://models.example/", "Content-Disposition"),
        ("https://models.example/notes.txt", "does not end in a file name"),
        ("https://models.example/m.ckpt?s3cr3t", "ALLOW_PICKLE_MODELS"),
    ],
)
def test_urls_that_are_refused(url: str, says: str) -> None:
    """One line that names node and input and what to do, and no secret."""
    with pytest.raises(InputRefusedError, match=says) as error:
        url_references("CheckpointLoaderSimple", ckpt_name=url)
    assert error.value.message.startswith("Failed to process model for node 4: input ckpt_name: ")
    assert "s3cr3t" not in error.value.message


def test_long_and_odd_names_of_urls_are_made_usable() -> None:
    """The local name fits the file system and keeps its suffix."""
    (reference,) = url_references(
        "VAELoader", vae_name=f"https://models.example/{'ä' * 300}%0D%20é.safetensors".replace("%0D", "")
    )
    assert len(reference.filename.encode()) <= 255
    assert reference.filename.endswith("_é.safetensors")


def test_two_urls_of_one_job_that_differ_only_in_their_query() -> None:
    """They would be one local file, so the job is refused."""
    urls = [f"https://models.example/m.safetensors?v={version}" for version in (1, 1, 2)]
    same = {"clip_name1": urls[0], "clip_name2": urls[1]}
    assert len(url_references("DualCLIPLoader", **same)) == 2
    with pytest.raises(InputRefusedError, match="differ only in their queries"):
        url_references("DualCLIPLoader", clip_name1=urls[0], clip_name2=urls[2])


@pytest.mark.parametrize(
    ("input_name", "url", "folder"),
    [
        ("lora_name", "https://models.example/any/m.safetensors", "loras"),
        ("lora_name", "https://models.example/vae/m.safetensors?x=1", "loras"),
        ("model", "s3://bucket/old/checkpoints/vae/m.sft", "vae"),
    ],
)
def test_urls_in_nodes_that_are_not_known(input_name: str, url: str, folder: str) -> None:
    """The input's name tells the folder, or else the URL's path."""
    (reference,) = url_references("SomebodysLoader", **{input_name: url})
    assert (reference.folder, reference.source_url) == (folder, url)


def test_a_url_whose_folder_nothing_tells() -> None:
    """It is refused with what to do, instead of guessed."""
    with pytest.raises(InputRefusedError, match="put the file under MODELS_URL"):
        url_references("SomebodysLoader", model="https://models.example/m.safetensors")


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("SomebodysNode", {"text": "see https://other.example/m.safetensors"}),
        ("SomebodysNode", {"url": "https://other.example/page"}),
        ("SaveImage", {"filename_prefix": "https://other.example/m.safetensors"}),
        ("LoraLoader", {"note": "https://other.example/m.safetensors"}),
    ],
)
def test_urls_that_are_no_models(class_type: str, inputs: dict[str, str]) -> None:
    """A text about a URL, a page, a prefix and an unknown input of a known loader are left alone."""
    assert url_references(class_type, **inputs) == ()

"""Models of nodes that are not ComfyUI's own, and where models come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from function.errors import InputRefusedError, ModelAmbiguousError, StorageUnavailableError
from function.models.custom import custom_references, names_custom_models
from function.models.lookup import ModelLookup
from function.models.references import ModelRef, localise_models, stamp_loaders
from function.sources import parse_allow_list
from function.storage.https import FetchRules, HttpsOrigin
from function.storage.local import LocalStore
from function.storage.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.storage.objects import ObjectInfo

KEYS = [
    "root.safetensors",
    "checkpoints/sd.safetensors",
    "loras/sd.safetensors",
    "loras/style/ink.safetensors",
    "ultralytics/bbox/face.pt",
]


def graph(value: object, class_type: str = "SomebodysLoader", name: str = "file") -> dict[str, dict[str, object]]:
    """A workflow of one node, 4."""
    return {"4": {"class_type": class_type, "inputs": {name: value}}}


def test_a_name_that_fits_one_object() -> None:
    """It is that object, and the node is given its name inside the folder."""
    workflow = graph("ink.safetensors")
    references = custom_references(workflow, KEYS)
    assert references == (ModelRef("loras", "style/ink.safetensors", "4", "file"),)
    assert localise_models(workflow, references)["4"]["inputs"] == {"file": "style/ink.safetensors"}


def test_models_that_the_graph_does_not_name(tmp_path: Path) -> None:
    """They are references like the others, and change no node."""
    lookup = ModelLookup(LocalStore(f"file://{tmp_path}"), rules=FetchRules())
    workflow = graph("sd.safetensors", "CheckpointLoaderSimple", "ckpt_name")
    references = lookup.references(workflow, ["vae/a/b.safetensors"])
    assert [reference.key for reference in references] == ["checkpoints/sd.safetensors", "vae/a/b.safetensors"]
    assert localise_models(workflow, references) == workflow
    assert stamp_loaders(workflow, {references[1]: "e"}) == workflow
    with pytest.raises(InputRefusedError, match=r"model vae/\.\./a"):
        lookup.references(workflow, ["vae/../a.safetensors"])


def test_a_name_that_fits_several_objects_lists_them() -> None:
    """The answer names node, input and candidates; with its folder the name is clear."""
    with pytest.raises(ModelAmbiguousError, match=r"node 4: input file: 'sd\.safetensors' may be any of") as error:
        custom_references(graph("sd.safetensors"), KEYS)
    assert error.value.details == {
        "candidates": ["checkpoints/sd.safetensors", "loras/sd.safetensors"],
        "location": "prompt.4.inputs",
    }
    assert error.value.status == 422
    workflow = graph("loras/sd.safetensors")
    references = custom_references(workflow, KEYS)
    assert localise_models(workflow, references)["4"]["inputs"] == {"file": "sd.safetensors"}


@pytest.mark.parametrize("value", ["other.safetensors", "d.safetensors", "root.safetensors", "../sd.safetensors"])
def test_a_name_that_fits_nothing_is_left_to_the_engine(value: str) -> None:
    """The file may have come with the node; only whole parts of keys below a folder count."""
    assert custom_references(graph(value), KEYS) == ()


def test_pickle_formats_need_the_setting_here_too() -> None:
    """The line names it."""
    with pytest.raises(InputRefusedError, match="ALLOW_PICKLE_MODELS"):
        custom_references(graph("bbox/face.pt"), KEYS)
    (reference,) = custom_references(graph("bbox/face.pt"), KEYS, allow_pickle=True)
    assert reference.key == "ultralytics/bbox/face.pt"


@pytest.mark.parametrize(
    ("value", "class_type", "name"),
    [
        ("a cat", "SomebodysNode", "text"),
        (["3", 0], "SomebodysNode", "file"),
        (7, "SomebodysNode", "file"),
        ("ink.safetensors", "LoraLoader", "lora_name"),
        ("ink.safetensors", "SomebodysSaver", "filename_prefix"),
        ("https://host/ink.safetensors", "SomebodysNode", "url"),
        ("x" * 300 + ".safetensors", "SomebodysNode", "file"),
    ],
)
def test_what_is_not_looked_up(value: object, class_type: str, name: str) -> None:
    """Only file names of models, in nodes that we don't know."""
    assert not names_custom_models(graph(value, class_type, name))


@dataclass
class Clock:
    """Seconds that a test moves."""

    seconds: float = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.seconds


class ListedStore(LocalStore):
    """A directory store that counts its listings, and may be down."""

    listings = 0
    down = False

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """As a directory does, unless down."""
        self.listings += 1
        if self.down:
            raise StorageUnavailableError("storage is down")
        return super().list_objects(prefix, start_after=start_after)


@pytest.fixture
def listed(tmp_path: Path) -> ListedStore:
    """A store with one LoRA."""
    store = ListedStore(f"file://{tmp_path}")
    store.put("loras/ink.safetensors", b"x")
    return store


def test_storage_is_listed_only_for_unknown_nodes_and_not_every_time(listed: ListedStore) -> None:
    """A listing counts for a while; then a new file is found."""
    clock = Clock()
    lookup = ModelLookup(listed, rules=FetchRules(), listing_seconds=60, clock=clock)
    lookup.references(graph("ink.safetensors", "LoraLoader", "lora_name"))
    assert listed.listings == 0
    for _ in range(3):
        assert len(lookup.references(graph("ink.safetensors"))) == 1
    assert listed.listings == 1
    listed.put("loras/new.safetensors", b"x")
    clock.seconds = 61
    assert len(lookup.references(graph("new.safetensors"))) == 1
    assert listed.listings == 2


def test_while_storage_is_away_an_earlier_listing_counts(listed: ListedStore) -> None:
    """Without one the job is to be tried later."""
    lookup = ModelLookup(listed, rules=FetchRules(), listing_seconds=0)
    listed.down = True
    with pytest.raises(StorageUnavailableError):
        lookup.references(graph("ink.safetensors"))
    listed.down = False
    lookup.references(graph("ink.safetensors"))
    listed.down = True
    assert len(lookup.references(graph("ink.safetensors"))) == 1


def lookup_of(store: LocalStore | S3Store) -> ModelLookup:
    """A lookup that may read one host."""
    return ModelLookup(store, rules=FetchRules(allow=parse_allow_list("models.example")))


def test_a_model_comes_from_storage_unless_it_has_a_url(listed: ListedStore) -> None:
    """Then from the URL's host or bucket, of which there is one object each, by the URL's path and query."""
    lookup = lookup_of(listed)
    plain = ModelRef("loras", "ink.safetensors", "4", "file")
    assert lookup.origin_of(plain) == (listed, "loras/ink.safetensors")
    url = "https://models.example/a/m.safetensors?token=s3cr3t"
    (reference,) = lookup.references(graph(url, "LoraLoader", "lora_name"))
    origin, key = lookup.origin_of(reference)
    assert isinstance(origin, HttpsOrigin)
    assert (origin.url, key) == ("https://models.example", "a/m.safetensors?token=s3cr3t")
    assert origin.object_url(key) == "https://models.example/a/m.safetensors"
    assert lookup.origin_of(reference)[0] is origin


def test_the_bucket_of_models_url_needs_no_entry() -> None:
    """Only below its prefix."""
    lookup = lookup_of(S3Store("s3://bucket/models"))
    (reference,) = lookup.references(graph("s3://bucket/models/any/m.sft", "LoraLoader", "lora_name"))
    origin, key = lookup.origin_of(reference)
    assert origin.object_url(key) == "s3://bucket/models/any/m.sft"
    with pytest.raises(InputRefusedError, match="add s3://bucket to MODEL_URL_ALLOW"):
        lookup.references(graph("s3://bucket/private/m.sft", "LoraLoader", "lora_name"))


def test_a_bucket_with_a_prefix_that_no_url_can_name() -> None:
    """Its models still have names; their URLs are refused."""
    lookup = lookup_of(S3Store("s3://bucket/a/../b"))
    assert len(lookup.references(graph("m.sft", "LoraLoader", "lora_name"))) == 1
    with pytest.raises(InputRefusedError, match="MODEL_URL_ALLOW"):
        lookup.references(graph("s3://bucket/b/m.sft", "LoraLoader", "lora_name"))

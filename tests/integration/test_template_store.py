"""Templates over every kind of store: names, and how often storage is asked."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from function.errors import StorageUnavailableError, TemplateInvalidError, TemplateMissingError
from function.templates.store import MAX_TEMPLATE_BYTES, TemplateStore
from tests.support.engine import case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.storage.objects import ObjectInfo, ObjectStore


class AskedStore:
    """A store that writes down what it is asked, and that can be away."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.asked: list[str] = []
        self.away = False

    @property
    def url(self) -> str:
        """That of the store."""
        return self._store.url

    def object_url(self, key: str) -> str:
        """That of the store."""
        return self._store.object_url(key)

    def head(self, key: str) -> ObjectInfo:
        """Asked."""
        self._ask(f"head {key}")
        return self._store.head(key)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Asked."""
        self._ask(f"get {key}")
        return self._store.get(key, max_bytes=max_bytes)

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Asked."""
        self._ask("list")
        return self._store.list_objects()

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.away:
            raise StorageUnavailableError("the store is away")

    def take_asked(self) -> list[str]:
        """What it was asked since the last time."""
        asked, self.asked = self.asked, []
        return asked


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Bench:
    """A store with templates, and who reads them."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.asked = AskedStore(store)
        self.clock = Clock()
        self.templates: Any = TemplateStore(self.asked, revalidate_seconds=5, clock=self.clock)  # type: ignore[arg-type]  (what it uses of a store)

    def put(self, name: str, prefix: str = "c01") -> None:
        """Write a template; its prefix tells which."""
        workflow = case("01_empty_save")
        for node in workflow.values():
            if "filename_prefix" in node["inputs"]:
                node["inputs"]["filename_prefix"] = prefix
        self.store.put(f"{name}.json", json.dumps(workflow).encode())

    def prefix(self, name: str) -> str:
        """Which template there is."""
        workflow = self.templates.get(name).workflow
        return next(n["inputs"]["filename_prefix"] for n in workflow.values() if "filename_prefix" in n["inputs"])


@pytest.fixture
def bench(store: ObjectStore) -> Bench:
    """Over each kind of store."""
    return Bench(store)


def test_names_are_those_of_json_files(bench: Bench) -> None:
    """With their folders; what can't be a name is not listed."""
    for name in ("upscale", "sdxl/refine-2", "Upper", "a b", ".hidden", "x/.y"):
        bench.put(name)
    bench.store.put("readme.txt", b"")
    assert bench.templates.names() == ["sdxl/refine-2", "upscale"]


def test_a_template_is_read_once_and_asked_for_every_few_seconds(bench: Bench) -> None:
    """One HEAD tells whether it is still the same; only another one is read again."""
    bench.put("cat", "old")
    assert [bench.prefix("cat") for _ in range(3)] == ["old"] * 3
    assert bench.asked.take_asked() == ["head cat.json", "get cat.json"]
    bench.clock.now = 5
    assert [bench.prefix("cat") for _ in range(3)] == ["old"] * 3
    assert bench.asked.take_asked() == ["head cat.json"]
    bench.put("cat", "new")
    assert bench.prefix("cat") == "old"
    bench.clock.now = 10
    assert bench.prefix("cat") == "new"
    assert bench.asked.take_asked() == ["head cat.json", "get cat.json"]


def test_a_missing_template_says_which_there_are(bench: Bench) -> None:
    """Also one that was there a moment ago, and none is remembered as missing."""
    bench.put("cat")
    bench.put("dog")
    bench.templates.get("cat")
    bench.store.delete("cat.json")
    bench.clock.now = 5
    with pytest.raises(TemplateMissingError) as error:
        bench.templates.get("cat")
    assert error.value.message == f"there is no template 'cat' in {bench.store.url}; there are dog"
    bench.put("cat", "back")
    assert bench.prefix("cat") == "back"


@pytest.mark.parametrize(
    "name", ["", "..", "../cat", "/cat", "cat/", "a//b", "Cat", "cat.json", "a\nb", "c" * 201, "é"]
)
def test_what_is_no_name_is_asked_of_no_store(bench: Bench, name: str) -> None:
    """It is missing like any other."""
    with pytest.raises(TemplateMissingError, match="there are none"):
        bench.templates.get(name)
    assert bench.asked.take_asked() == ["list"]


def test_a_broken_file_is_named_and_heals(bench: Bench) -> None:
    """Also when it replaced a good one; nobody gets the old one meanwhile."""
    bench.put("cat", "old")
    bench.templates.get("cat")
    bench.store.put("cat.json", b"{")
    bench.clock.now = 5
    for _ in range(2):
        with pytest.raises(TemplateInvalidError) as error:
            bench.templates.get("cat")
        assert f"template cat ({bench.store.object_url('cat.json')}): the file is not JSON" in error.value.message
    bench.put("cat", "mended")
    assert bench.prefix("cat") == "mended"


def test_a_large_file_is_not_read(bench: Bench) -> None:
    """Whatever lies there by mistake."""
    bench.store.put("cat.json", b" " * (MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(TemplateInvalidError, match="larger than"):
        bench.templates.get("cat")
    assert bench.asked.take_asked() == ["head cat.json"]


def test_a_known_template_outlives_its_storage(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; one that is not known is unavailable."""
    bench.put("cat")
    bench.templates.get("cat")
    bench.asked.away = True
    bench.clock.now = 5
    with caplog.at_level(logging.WARNING):
        assert bench.prefix("cat") == "c01"
    assert "the one from before is used" in caplog.text
    with pytest.raises(StorageUnavailableError):
        bench.templates.get("dog")

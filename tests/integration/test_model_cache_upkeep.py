"""What an operator does with cached files."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from function.errors import CacheBusyError, InputRefusedError, ModelMissingError, ModelTooLargeError
from tests.support.models import Bench, hold, ref, soon, use

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store and model directory."""
    return Bench(tmp_path)


def test_pinned_file_is_never_evicted(bench: Bench) -> None:
    """A pinned file stays for every process and after a restart, until it is unpinned."""
    bench.capacity_bytes = 20
    kept, other, third = (bench.put(name, b"x" * 10) for name in ("kept", "other", "third"))
    cache = bench.cache()
    use(cache, kept)
    cache.pin(kept.key)
    use(cache, other)
    use(bench.cache(), third)
    assert bench.visible().keys() == {kept.key, third.key}
    assert [(file.key, file.pinned) for file in cache.files()] == [(kept.key, True), (third.key, False)]
    cache.unpin(kept.key)
    use(cache, other)
    assert bench.visible().keys() == {third.key, other.key}


def test_new_version_stays_pinned(bench: Bench) -> None:
    """A pinned file is replaced when its object is, and the new version is pinned."""
    model, cache = bench.put("one", b"old"), bench.cache()
    use(cache, model)
    cache.pin(model.key)
    bench.put("one", b"new")
    use(cache, model)
    assert bench.visible() == {model.key: b"new"}
    assert cache.files()[0].pinned


def test_no_room_beside_pinned_files(bench: Bench) -> None:
    """Where pinned files leave too little room, a job is told so at its deadline."""
    bench.capacity_bytes = 20
    kept, large = bench.put("kept", b"x" * 10), bench.put("large", b"x" * 15)
    cache = bench.cache()
    use(cache, kept)
    cache.pin(kept.key)
    with pytest.raises(CacheBusyError, match="pinned files"), cache.ensure([large], deadline=0.0):
        pass


def test_verify(bench: Bench) -> None:
    """A file is compared with what was downloaded, byte for byte."""
    model, cache = bench.put("one", b"whole"), bench.cache()
    use(cache, model)
    assert cache.verify(model.key)
    bench.path(model).write_bytes(b"wrong")
    assert not cache.verify(model.key)


def test_evict(bench: Bench) -> None:
    """A file is removed unless a job uses it or it is pinned."""
    model, cache = bench.put("one", b"1"), bench.cache()
    with ExitStack() as jobs:
        hold(jobs, cache, model)
        with pytest.raises(CacheBusyError, match="a job uses"):
            bench.cache().evict(model.key)
    cache.pin(model.key)
    with pytest.raises(CacheBusyError, match="unpin"):
        cache.evict(model.key)
    cache.unpin(model.key)
    cache.evict(model.key)
    assert (bench.visible(), cache.files(), cache.size_bytes) == ({}, [], 0)


def test_pull(bench: Bench) -> None:
    """A file is brought by its key, and its new version when there is one."""
    model, cache = bench.put("one", b"old"), bench.cache()
    cache.pull(model.key, deadline=soon())
    bench.put("one", b"new")
    cache.pull(model.key, deadline=soon())
    assert bench.visible() == {model.key: b"new"}
    assert not cache.files()[0].in_use


@pytest.mark.parametrize("key", ["checkpoints/nowhere.safetensors", "embeddings/nowhere.safetensors"])
def test_pull_of_nothing(bench: Bench, key: str) -> None:
    """A file that is nowhere is an error, also in a folder whose files jobs can do without."""
    with pytest.raises(ModelMissingError, match="nowhere"):
        bench.cache().pull(key, deadline=soon())


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "", "checkpoints/../../x"])
def test_pull_of_hostile_names(bench: Bench, key: str) -> None:
    """A name that leads out of the model directory is refused."""
    with pytest.raises(InputRefusedError):
        bench.cache().pull(key, deadline=soon())


def test_pull_of_too_much(bench: Bench) -> None:
    """A file larger than the cache is refused."""
    bench.capacity_bytes = 1
    with pytest.raises(ModelTooLargeError):
        bench.cache().pull(bench.put("one", b"12").key, deadline=soon())


@pytest.mark.parametrize("operation", ["pin", "unpin", "verify", "evict"])
@pytest.mark.parametrize("read_only", [True, False])
def test_file_that_is_not_the_caches(bench: Bench, operation: str, *, read_only: bool) -> None:
    """Files of the image, and those of a directory that can't be written to, are not the cache's to look after."""
    image = ref("image")
    bench.path(image).parent.mkdir(parents=True)
    bench.path(image).write_bytes(b"image")
    cache = bench.cache(**{"probe": lambda _directory: False} if read_only else {})
    with pytest.raises(ModelMissingError, match="the cache has no model"):
        getattr(cache, operation)(image.key)
    assert (cache.files(), bench.visible()) == ([], {image.key: b"image"})

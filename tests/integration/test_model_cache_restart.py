"""The cache over a directory that earlier processes have left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.models import Bench, soon, use

if TYPE_CHECKING:
    from pathlib import Path

    from function.telemetry import Progress


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store and model directory."""
    return Bench(tmp_path)


def test_files_survive(bench: Bench) -> None:
    """After a restart a cached file is found, counted, and used without a download."""
    model = bench.put("one", b"1" * 10)
    etags = use(bench.cache(), model)
    cache = bench.cache()
    assert use(cache, model) == etags
    assert (bench.store.downloads, cache.size_bytes) == ([model.key], 10)


def test_order_of_use_survives(bench: Bench) -> None:
    """After a restart the file that was used longest ago still goes first."""
    bench.capacity_bytes = 20
    one, two, three = (bench.put(name, b"x" * 10) for name in ("one", "two", "three"))
    before = bench.cache()
    for model in (one, two, one):
        use(before, model)
    use(bench.cache(), three)
    assert bench.visible().keys() == {one.key, three.key}


def test_smaller_capacity(bench: Bench) -> None:
    """A start with a smaller capacity removes what doesn't fit any more, and nothing of the image."""
    models = [bench.put(name, b"x" * 10) for name in ("one", "two", "three")]
    use(bench.cache(), *models)
    use(bench.cache(), models[0])
    (bench.model_dir / "checkpoints/image.safetensors").write_bytes(b"image")
    bench.capacity_bytes = 10
    cache = bench.cache()
    assert bench.visible().keys() == {models[0].key, "checkpoints/image.safetensors"}
    assert cache.size_bytes == 10


def test_object_replaced_between_two_processes(bench: Bench) -> None:
    """A file whose object was replaced while no process ran is brought anew."""
    model = bench.put("one", b"old")
    use(bench.cache(), model)
    bench.put("one", b"new")
    use(bench.cache(), model)
    assert bench.visible() == {model.key: b"new"}


def test_stray_part(bench: Bench) -> None:
    """A part that no record speaks of is removed by a start and takes no room."""
    model = bench.put("one", b"whole")
    use(bench.cache(), model)
    (bench.model_dir / "checkpoints/.0123.comfyfn-part").write_bytes(b"half")
    assert bench.cache().size_bytes == 5
    assert bench.parts() == []


def test_file_of_an_earlier_boot(bench: Bench) -> None:
    """After a reboot a file is checked once before its first use; nothing is downloaded if it is whole."""
    model = bench.put("one", b"whole")
    etags = use(bench.cache(boot_id="a"), model)
    cache = bench.cache(boot_id="b")
    seen: list[Progress] = []
    with cache.ensure([model], deadline=soon(), on_progress=seen.append) as again:
        assert again == etags
    assert seen[-1].fraction == 1.0
    seen.clear()
    with bench.cache(boot_id="b").ensure([model], deadline=soon(), on_progress=seen.append):
        assert (seen, bench.store.downloads) == ([], [model.key])


def test_machines_that_share_a_directory(bench: Bench) -> None:
    """A file is checked once under each boot, also when machines with different ones take turns."""
    model = bench.put("one", b"whole")
    caches = [bench.cache(boot_id=boot) for boot in "ab"]
    for cache in caches:
        use(cache, model)
    for cache in caches:
        seen: list[Progress] = []
        with cache.ensure([model], deadline=soon(), on_progress=seen.append):
            assert seen == []


def test_file_that_lost_bytes_in_a_crash(bench: Bench) -> None:
    """A file that is not what it was before the reboot is never used, but dropped and downloaded again."""
    model, other = bench.put("one", b"whole"), bench.put("two", b"whole, too")
    use(bench.cache(boot_id="a"), model, other)
    bench.path(model).write_bytes(b"\0" * 5)
    use(bench.cache(boot_id="b"), model, other)
    assert bench.visible()[model.key] == b"whole"
    assert sorted(bench.store.downloads) == [model.key, model.key, other.key]

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from function.errors import (
    CacheBusyError,
    InputRefusedError,
    ModelMissingError,
    ModelTooLargeError,
    StorageUnavailableError,
)
from function.models.cache import CachedFile
from tests.support.models import PATIENCE_SECONDS, Bench, hold, ref, soon, use

if TYPE_CHECKING:
    from pathlib import Path

    from function.telemetry import Progress


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty store and model directory."""
    return Bench(tmp_path)


def test_brings_files_where_the_engine_looks(bench: Bench) -> None:
    """A job's files are in MODEL_DIR/<folder>/<filename> while it runs, with their content."""
    one, two = bench.put("one", b"1" * 10), bench.put("sub/two", b"2" * 20)
    with bench.cache().ensure([one, two], deadline=soon()) as etags:
        assert bench.visible() == {one.key: b"1" * 10, two.key: b"2" * 20}
        assert etags == {model: bench.store.head(model.key).etag for model in (one, two)}
    assert bench.parts() == []


def test_present_files_are_not_downloaded_again(bench: Bench) -> None:
    """The second job finds the file of the first, and both are counted."""
    model, cache = bench.put("one", b"1" * 10), bench.cache()
    use(cache, model)
    use(cache, model)
    assert bench.store.downloads == [model.key]
    counts = [bench.metric(f"cache_{name}_total") for name in ("misses", "hits", "downloaded_bytes")]
    assert counts == [1, 1, 10]
    assert bench.metric("cache_size_bytes") == 10


def test_one_file_named_by_two_nodes(bench: Bench) -> None:
    """Two references to one file are one download, and both get its ETag."""
    first = bench.put("one", b"1")
    second = type(first)(first.folder, first.filename, "5", "ckpt_name")
    assert use(bench.cache(), first, second).keys() == {first, second}
    assert bench.store.downloads == [first.key]


def test_least_recently_used_goes_first(bench: Bench) -> None:
    """Room is made by removing the file that was used longest ago."""
    bench.capacity_bytes = 30
    one, two, three, four = (bench.put(name, name.encode().ljust(10)) for name in ("one", "two", "three", "four"))
    cache = bench.cache()
    for model in (one, two, three, one, four):
        use(cache, model)
    assert bench.visible().keys() == {one.key, three.key, four.key}
    assert bench.metric("cache_evictions_total") == 1


def test_room_is_made_before_the_first_byte(bench: Bench) -> None:
    """When a download begins, the evicted file is gone and the new one's room is counted."""
    bench.capacity_bytes = 10
    one, two, cache = bench.put("one", b"1" * 10), bench.put("two", b"2" * 10), bench.cache()
    use(cache, one)
    seen: list[tuple[bool, int]] = []
    bench.store.before_download = lambda _key: seen.append((bench.path(one).exists(), cache.size_bytes))
    use(cache, two)
    assert seen == [(False, 10)]


def test_pinned_files_stay(bench: Bench) -> None:
    """A job that finds no room beside a running one gets `cache_busy` at its deadline; nothing is evicted for it."""
    bench.capacity_bytes = 20
    running, idle, large = (bench.put(name, b"x" * size) for name, size in (("a", 10), ("b", 10), ("c", 20)))
    cache = bench.cache()
    use(cache, idle)
    with ExitStack() as jobs:
        hold(jobs, cache, running)
        with pytest.raises(CacheBusyError), cache.ensure([large], deadline=0.0):
            pass
        assert bench.visible().keys() == {running.key, idle.key}
    use(cache, large)
    assert bench.visible().keys() == {large.key}


def test_nothing_is_evicted_in_vain(bench: Bench) -> None:
    """A set that does not fit beside the running jobs evicts nothing, also when part of it is present."""
    bench.capacity_bytes = 30
    running, idle, present, large = (bench.put(n, b"x" * size) for n, size in (("a", 9), ("b", 9), ("c", 9), ("d", 15)))
    cache = bench.cache()
    use(cache, idle, present)
    with ExitStack() as jobs:
        hold(jobs, cache, running)
        with pytest.raises(CacheBusyError), cache.ensure([present, large], deadline=0.0):
            pass
        assert bench.visible().keys() == {running.key, idle.key, present.key}


def test_a_file_pinned_twice(bench: Bench) -> None:
    """A file stays pinned until the last of its jobs ends."""
    model, cache = bench.put("one", b"1"), bench.cache()
    with ExitStack() as second:
        with ExitStack() as first:
            hold(first, cache, model)
            hold(second, cache, model)
        assert cache.files()[0].in_use
    assert not cache.files()[0].in_use


def test_set_larger_than_the_cache(bench: Bench) -> None:
    """A set that can never fit is refused with the total, the capacity and the setting, before anything is moved."""
    bench.capacity_bytes = 30
    models = [bench.put(name, b"x" * 16) for name in ("a", "b")]
    with pytest.raises(ModelTooLargeError, match=r"32 bytes.*LRU_CACHE_SIZE_GB.*30") as error:
        use(bench.cache(), *models)
    assert error.value.details == {"total_bytes": 32, "limit_bytes": 30}
    assert bench.store.downloads == []


def test_missing_models(bench: Bench) -> None:
    """All missing models are named at once with node, input, folder and URL, before any other is downloaded."""
    there, gone, lost = bench.put("there", b"1"), ref("gone"), ref("lost", "loras")
    with pytest.raises(ModelMissingError) as error:
        use(bench.cache(), there, gone, lost)
    for part in ("node 4: input ckpt_name", "checkpoints", bench.store.object_url(gone.key), "loras/lost"):
        assert part in error.value.message
    assert [item["filename"] for item in error.value.details["missing_models"]] == [gone.filename, lost.filename]
    assert bench.store.downloads == []


def test_missing_embedding(bench: Bench) -> None:
    """A missing embedding is left out, as ComfyUI skips it."""
    there = bench.put("there", b"1")
    assert use(bench.cache(), there, ref("nowhere", "embeddings")).keys() == {there}


def test_listing(bench: Bench) -> None:
    """The listing has the cache's own files with size, ETag, source, last use and pins, and none of the image's."""
    model, cache = bench.put("one", b"12"), bench.cache()
    (bench.model_dir / "loras").mkdir()
    (bench.model_dir / "loras/image.safetensors").write_bytes(b"image")
    etag = use(cache, model, ref("image", "loras"))[model]
    (file,) = cache.files()
    assert 0 <= time.time() - file.used_at < PATIENCE_SECONDS
    source = bench.store.object_url(model.key)
    assert file == CachedFile(model.key, 2, etag, source, file.used_at, in_use=False, pinned=False)


def test_files_of_the_image(bench: Bench) -> None:
    """A file that the cache did not bring is used without asking storage; it is never replaced or evicted."""
    bench.capacity_bytes = 10
    image, other = bench.put("image", b"other content"), bench.put("other", b"2" * 10)
    bench.path(image).parent.mkdir(parents=True)
    bench.path(image).write_bytes(b"from the image")
    cache = bench.cache()
    first = use(cache, image)
    assert bench.store.heads == []
    use(cache, other)
    assert bench.visible() == {image.key: b"from the image", other.key: b"2" * 10}
    os.utime(bench.path(image), ns=(1, 1))
    assert use(cache, image) != first


def test_files_of_a_legacy_folder(bench: Bench) -> None:
    """A file in ComfyUI's older directory of the same folder counts as present."""
    (bench.model_dir / "unet").mkdir(parents=True)
    (bench.model_dir / "unet/flux.safetensors").write_bytes(b"flux")
    model = ref("flux", "diffusion_models")
    assert use(bench.cache(), model).keys() == {model}


def test_replaced_object(bench: Bench) -> None:
    """An object replaced under the same key is downloaded for the next job, and its ETag changes."""
    model, cache = bench.put("one", b"old"), bench.cache()
    old = use(cache, model)
    bench.put("one", b"new")
    assert use(cache, model) != old
    assert bench.visible() == {model.key: b"new"}
    assert cache.size_bytes == 3


def test_replaced_file_is_forgotten(bench: Bench) -> None:
    """Once a file is replaced, its old content takes no room any more and can't be evicted."""
    bench.capacity_bytes = 20
    model, other, cache = bench.put("one", b"old"), bench.put("other", b"x" * 15), bench.cache()
    use(cache, model)
    bench.put("one", b"newer")
    with ExitStack() as jobs:
        hold(jobs, cache, model)
        assert cache.size_bytes == 5
        hold(jobs, cache, other)
        assert bench.visible().keys() == {model.key, other.key}


def test_outdated_file_goes_first(bench: Bench) -> None:
    """Where a replaced object needs room, its old content goes before files that are still of use."""
    bench.capacity_bytes = 20
    other, model, cache = bench.put("other", b"2" * 10), bench.put("one", b"o" * 10), bench.cache()
    use(cache, other)
    use(cache, model)
    bench.put("one", b"n" * 10)
    use(cache, model)
    assert bench.visible() == {other.key: b"2" * 10, model.key: b"n" * 10}


def test_broken_replacement_keeps_the_old_file(bench: Bench) -> None:
    """While a replacement can't be read, the old file stays beside its part, and is used when storage is down."""
    model, cache = bench.put("one", b"old"), bench.cache()
    old = use(cache, model)
    bench.put("one", b"new!")
    bench.store.cut = {model.key}
    with pytest.raises(StorageUnavailableError):
        use(cache, model)
    bench.store.down = True
    assert use(cache, model) == old
    assert (bench.visible(), cache.size_bytes) == ({model.key: b"old"}, 3 + 4)


def test_object_replaced_between_question_and_download(bench: Bench) -> None:
    """An object that changes after its HEAD is asked for again: the job gets the new content with its ETag."""
    model = bench.put("one", b"old")

    def replace(_key: str) -> None:
        bench.store.before_download = lambda _key: None
        bench.put("one", b"newer")

    bench.store.before_download = replace
    etags = use(bench.cache(), model)
    assert bench.visible() == {model.key: b"newer"}
    assert etags[model] == bench.store.head(model.key).etag


def test_object_that_never_rests(bench: Bench) -> None:
    """An object that is replaced during every download ends in a retryable error and leaves nothing."""
    model, cache = bench.put("one", b"0"), bench.cache()
    bench.store.before_download = lambda _key: bench.put("one", os.urandom(8)) and None
    with pytest.raises(StorageUnavailableError, match="again and again"):
        use(cache, model)
    assert (bench.visible(), bench.parts(), cache.size_bytes) == ({}, [], 0)


def test_storage_down(bench: Bench) -> None:
    """With storage down a cached file is used; one that is not there is a retryable error."""
    model, other, cache = bench.put("one", b"1"), bench.put("two", b"2"), bench.cache()
    etags = use(cache, model)
    bench.store.down = True
    assert use(cache, model) == etags
    with pytest.raises(StorageUnavailableError):
        use(cache, other)


def test_object_deleted_from_storage(bench: Bench) -> None:
    """A cached file is used even when storage no longer has it."""
    model, cache = bench.put("one", b"1"), bench.cache()
    etags = use(cache, model)
    bench.store.delete(model.key)
    assert use(cache, model) == etags


def test_file_removed_by_hand(bench: Bench) -> None:
    """A cached file that somebody removed is downloaded again."""
    model, cache = bench.put("one", b"1"), bench.cache()
    use(cache, model)
    bench.path(model).unlink()
    use(cache, model)
    assert (bench.visible(), cache.size_bytes) == ({model.key: b"1"}, 1)


def test_revalidation_interval(bench: Bench) -> None:
    """Within the interval storage is not asked again; after it, it is."""
    now = [100.0]
    model, cache = bench.put("one", b"1"), bench.cache(clock=lambda: now[0], revalidate_seconds=60.0)
    use(cache, model)
    now[0] += 59
    use(cache, model)
    assert len(bench.store.heads) == 1
    now[0] += 2
    use(cache, model)
    assert len(bench.store.heads) == 2


def test_interval_ends_when_the_file_is_gone(bench: Bench) -> None:
    """A file that vanished within the interval is asked for and downloaded again."""
    model, cache = bench.put("one", b"1"), bench.cache(revalidate_seconds=3600.0)
    use(cache, model)
    bench.path(model).unlink()
    use(cache, model)
    assert bench.visible() == {model.key: b"1"}


def test_download_that_breaks(bench: Bench) -> None:
    """Of a download that breaks its part stays, counted in full, and becomes the file of the next job."""
    model, cache = bench.put("one", b"12345678"), bench.cache()
    bench.store.cut = {model.key}
    with pytest.raises(StorageUnavailableError):
        use(cache, model)
    (part,) = bench.parts()
    assert (bench.visible(), cache.size_bytes) == ({}, 8)
    parts: list[list[str]] = []
    bench.store.cut, bench.store.before_download = set(), lambda _key: parts.append(bench.parts())
    use(cache, model)
    assert (bench.visible(), bench.parts(), cache.size_bytes) == ({model.key: b"12345678"}, [], 8)
    assert parts == [[part]]


def test_download_of_another_length(bench: Bench) -> None:
    """A download that arrives with another length leaves nothing; the next one works."""
    model, cache = bench.put("one", b"12345678"), bench.cache()
    bench.store.short = {model.key}
    with pytest.raises(StorageUnavailableError, match="7 of 8 bytes"):
        use(cache, model)
    assert (bench.visible(), bench.parts(), cache.size_bytes) == ({}, [], 0)
    bench.store.short = set()
    use(cache, model)
    assert bench.visible() == {model.key: b"12345678"}


def test_parts_go_first(bench: Bench) -> None:
    """What a broken download left is evicted before any file that is of use, and leaves nothing."""
    bench.capacity_bytes = 20
    idle, broken, other = (bench.put(name, b"x" * 8) for name in ("idle", "broken", "other"))
    cache = bench.cache()
    use(cache, idle)
    bench.store.cut = {broken.key}
    with pytest.raises(StorageUnavailableError):
        use(cache, broken)
    use(cache, other)
    assert (bench.visible().keys(), bench.parts()) == ({idle.key, other.key}, [])
    assert bench.metric("cache_evictions_total") == 0


def test_disk_error(bench: Bench) -> None:
    """A file that can't be written is a clear, retryable error that names the directory."""
    model, cache = bench.put("one", b"1"), bench.cache()
    (bench.model_dir / "checkpoints").write_bytes(b"a file where a directory should be")
    with pytest.raises(StorageUnavailableError, match=str(bench.model_dir)):
        use(cache, model)


def test_file_that_cannot_be_evicted(bench: Bench) -> None:
    """A file that can't be removed keeps its room in the books; once it can be, the cache goes on."""
    bench.capacity_bytes = 10
    model, cache = bench.put("one", b"1" * 10), bench.cache()
    use(cache, model)
    other = ref("other", "loras")
    bench.store.put(other.key, b"2" * 10)
    folder, aside = bench.path(model).parent, bench.model_dir / "aside"
    folder.rename(aside)
    folder.touch()
    with pytest.raises(StorageUnavailableError):
        use(cache, other)
    assert cache.size_bytes == 10
    folder.unlink()
    aside.rename(folder)
    use(cache, other)
    assert bench.visible() == {other.key: b"2" * 10}


def test_link_out_of_the_model_directory(bench: Bench, tmp_path: Path) -> None:
    """Nothing is written through a link that leads out of the model directory."""
    model, cache = bench.put("one", b"1"), bench.cache()
    (tmp_path / "outside").mkdir()
    (bench.model_dir / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(InputRefusedError, match="out of the model directory"):
        use(cache, model)
    assert list((tmp_path / "outside").iterdir()) == []


def test_free_disk_is_honoured(bench: Bench) -> None:
    """Without a capacity, files are evicted so that the disk never gets fuller than it is large."""

    def free(directory: Path) -> int:
        return 25 - sum(path.stat().st_size for path in directory.rglob("*.safetensors"))

    one, two, three = (bench.put(name, b"x" * 10) for name in ("one", "two", "three"))
    cache = bench.cache(measure_free_disk=free)
    for model in (one, two, three):
        use(cache, model)
    assert bench.visible().keys() == {two.key, three.key}
    with pytest.raises(ModelTooLargeError, match="free disk"):
        use(cache, one, two, three)


def test_nothing_is_evicted_in_vain_for_the_disk(bench: Bench) -> None:
    """A file that doesn't fit on the disk beside the running jobs' evicts nothing."""
    running, idle, large = (bench.put(name, b"x" * size) for name, size in (("a", 10), ("b", 10), ("c", 16)))
    cache = bench.cache(measure_free_disk=lambda _directory: 25 - sum(map(len, bench.visible().values())))
    use(cache, idle)
    with ExitStack() as jobs:
        hold(jobs, cache, running)
        with pytest.raises(CacheBusyError), cache.ensure([large], deadline=0.0):
            pass
        assert bench.visible().keys() == {running.key, idle.key}


def test_disk_that_stays_full(bench: Bench) -> None:
    """Where removing files frees no space, because a process still maps them, the job holds nothing and comes back."""
    one, two, three = (bench.put(name, b"x" * 10) for name in ("one", "two", "three"))
    free = [30]
    cache = bench.cache(measure_free_disk=lambda _directory: free[0])
    use(cache, one, two)
    free[0] = 5
    with pytest.raises(CacheBusyError), cache.ensure([one, three], deadline=0.0):
        pass
    assert [(file.key, file.in_use) for file in cache.files()] == [(one.key, False)]


def test_progress(bench: Bench) -> None:
    """Progress rises to 1 in stage `models` and names a file."""
    seen: list[Progress] = []
    with bench.cache().ensure([bench.put("one", b"1")], deadline=soon(), on_progress=seen.append):
        fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert (seen[0].stage, seen[0].detail) == ("models", "one.safetensors")


def test_no_progress_without_downloads(bench: Bench) -> None:
    """A job whose files are present reports nothing."""
    model, cache = bench.put("one", b"1"), bench.cache()
    use(cache, model)
    seen: list[Progress] = []
    with cache.ensure([model], deadline=soon(), on_progress=seen.append):
        assert seen == []


def test_read_only_directory(bench: Bench) -> None:
    """In a directory that can't be written to, present files are used and nothing is asked of storage or written."""
    model = ref("volume")
    bench.path(model).parent.mkdir(parents=True)
    bench.path(model).write_bytes(b"volume")
    cache = bench.cache(probe=lambda _directory: False)
    assert use(cache, model).keys() == {model}
    assert (cache.read_only, bench.store.heads) == (True, [])
    assert [path.name for path in bench.model_dir.iterdir()] == ["checkpoints"]


def test_missing_model_in_a_read_only_directory(bench: Bench) -> None:
    """There, a missing model is an error that says why it is not downloaded."""
    model = bench.put("one", b"1")
    with pytest.raises(ModelMissingError, match="read-only"):
        use(bench.cache(probe=lambda _directory: False), model)

"""Outputs that are streamed to storage while the run goes on."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from function.engine.results import EngineFile
from function.errors import EngineUnavailableError, InputRefusedError, NodeFailedError, StorageUnavailableError
from function.job import JobResult, Output
from function.outputs.files import OutputFolder
from function.outputs.stored import StoredFile, StoredOutputs
from function.storage.local import LocalStore
from function.storage.objects import ObjectMissingError
from function.telemetry import Progress, ignore_progress
from tests.support.outputs import LARGE_FILE, file_of_engine, small_image, written
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

    from function.storage.objects import ObjectInfo, ObjectStore, Readable
    from function.storage.s3 import S3Store

MIB = 2**20

STORER = r"""
import re, sys
from pathlib import Path
from function.engine.results import EngineFile
from function.outputs.files import OutputFolder
from function.outputs.stored import StoredOutputs
from function.storage import open_store
from function.telemetry import ignore_progress

def peak_bytes():  # not getrusage's, which a process inherits from its parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

store, folder = open_store(sys.argv[1]), OutputFolder(Path(sys.argv[2]), "j1")
store.put("warm-up", b"")
files = [EngineFile("9", "images", name, "j1", "output") for name in sys.argv[3:]]
before = peak_bytes()
with StoredOutputs(store, folder, attempt=1, on_progress=ignore_progress) as outputs:
    outputs.begin(files)
    print(*(output.sha256 for output in outputs.finish(files)))
print(peak_bytes() - before)
"""


class ChangedStore(LocalStore):
    """A directory whose uploads first do something of the test's own."""

    def __init__(self, url: str, before_upload: Callable[[str, Readable], object]) -> None:
        super().__init__(url)
        self._before_upload = before_upload

    def upload(self, key: str, source: Readable, *, size_bytes: int, media_type: str = "") -> ObjectInfo:
        """As in a directory, afterwards."""
        self._before_upload(key, source)
        return super().upload(key, source, size_bytes=size_bytes, media_type=media_type)


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """OUTPUT_DIR."""
    path = tmp_path / "output"
    path.mkdir()
    return path


def storing(store: ObjectStore, output_dir: Path, *, seen: list[Progress] | None = None) -> StoredOutputs:
    """The outputs of the second attempt at the job j1."""
    on_progress = ignore_progress if seen is None else seen.append
    return StoredOutputs(store, OutputFolder(output_dir, "j1"), attempt=2, on_progress=on_progress)


def store_all(outputs: StoredOutputs, files: list[EngineFile]) -> tuple[Output, ...]:
    """A run that announces every file and succeeds."""
    with outputs:
        outputs.begin(files)
        return outputs.finish(files)


def fail_after(outputs: StoredOutputs, files: list[EngineFile], reached: Callable[[], object]) -> None:
    """A run that announces its files, comes as far as `reached` returns, and fails."""
    with outputs:
        outputs.begin(files)
        reached()
        raise NodeFailedError("node 3 failed")


def exists(store: ObjectStore, key: str) -> bool:
    """Whether there is an object of this key."""
    try:
        store.head(key)
    except ObjectMissingError:
        return False
    return True


def keys(store: ObjectStore) -> list[str]:
    """Every key of a store."""
    return [info.key for info in store.list_objects()]


def test_outputs_are_stored_and_described(store: ObjectStore, output_dir: Path) -> None:
    """Digest, size, dimensions and URL; the subfolder is the workflow's own, without the job's."""
    file = written(output_dir, "a.png", "j1/sub")
    with storing(store, output_dir) as outputs:
        (output,) = outputs.finish([file])
    stored = store.get("outputs/j1/2/sub/a.png", max_bytes=10_000)
    assert stored == small_image()
    assert (output.url, output.subfolder) == (store.object_url("outputs/j1/2/sub/a.png"), "sub")
    assert (output.sha256, output.size_bytes) == (hashlib.sha256(stored).hexdigest(), len(stored))
    assert (output.width, output.height, output.media_type) == (3, 2, "image/png")
    assert store.head("outputs/j1/2/sub/a.png").media_type == "image/png"
    assert output.data is None


@pytest.mark.parametrize(("filename", "content"), [("a.png", b"no image"), ("t.txt", small_image())])
def test_only_an_image_has_dimensions(store: ObjectStore, output_dir: Path, filename: str, content: bytes) -> None:
    """The file is an output all the same."""
    with storing(store, output_dir) as outputs:
        (output,) = outputs.finish([written(output_dir, filename, content=content)])
    assert (output.width, output.height, output.size_bytes) == (None, None, len(content))


def test_a_large_output_is_stored_in_parts_and_hashed_on_the_way(store: ObjectStore, output_dir: Path) -> None:
    """The digest is that of the bytes that arrived."""
    content = os.urandom(17 * MIB)
    file = written(output_dir, "a.mp4", content=content)
    with storing(store, output_dir) as outputs:
        (output,) = outputs.finish([file])
    stored = store.get("outputs/j1/2/a.mp4", max_bytes=18 * MIB)
    assert hashlib.sha256(stored).hexdigest() == hashlib.sha256(content).hexdigest() == output.sha256
    assert (output.size_bytes, output.media_type, output.width) == (17 * MIB, "video/mp4", None)


def test_an_announced_output_is_in_storage_while_the_run_goes_on(store: ObjectStore, output_dir: Path) -> None:
    """It is stored once, and the end waits for it."""
    file = written(output_dir, "a.png")
    with storing(store, output_dir) as outputs:
        outputs.begin([file])
        wait_until(lambda: exists(store, "outputs/j1/2/a.png"), what="the early output")
        early = store.head("outputs/j1/2/a.png")
        (output,) = outputs.finish([file])
        assert store.head("outputs/j1/2/a.png") == early
    assert output.sha256 == hashlib.sha256(small_image()).hexdigest()


def test_what_was_never_announced_is_stored_at_the_end_and_the_history_gives_the_order(
    local_store: LocalStore, output_dir: Path
) -> None:
    """A lost socket costs time, not outputs."""
    files = [written(output_dir, name, node_id=name[0]) for name in ("3.png", "1.png", "2.png")]
    with storing(local_store, output_dir) as outputs:
        outputs.begin([files[2]])
        stored = outputs.finish(files)
    assert [(output.node_id, output.filename) for output in stored] == [("3", "3.png"), ("1", "1.png"), ("2", "2.png")]


def test_what_the_history_does_not_list_is_no_output(store: ObjectStore, output_dir: Path) -> None:
    """Its object is deleted: a first try that ran out of memory may have announced it."""
    first, second = written(output_dir, "1.png"), written(output_dir, "2.png")
    with storing(store, output_dir) as outputs:
        outputs.begin([first])
        wait_until(lambda: exists(store, "outputs/j1/2/1.png"), what="the early output")
        outputs.finish([second])
    assert keys(store) == ["outputs/j1/2/2.png"]


def test_previews_are_not_stored_beside_files_that_were_saved(local_store: LocalStore, output_dir: Path) -> None:
    """Temporary files of the engine are left to it."""
    files = [written(output_dir, "p.png", "", folder_type="temp"), written(output_dir, "a.png")]
    assert [output.filename for output in store_all(storing(local_store, output_dir), files)] == ["a.png"]
    assert keys(local_store) == ["outputs/j1/2/a.png"]


def test_previews_of_a_run_that_saved_nothing_are_stored_at_its_end(store: ObjectStore, served: OutputFolder) -> None:
    """They are read through the engine, in bounded memory: nobody knows before the end whether a file will be saved."""
    preview = file_of_engine("p.png", folder_type="temp")
    with StoredOutputs(store, served, attempt=2, on_progress=ignore_progress) as outputs:
        outputs.begin([preview])
        assert keys(store) == []
        (output,) = outputs.finish([preview])
    assert (output.size_bytes, output.width, output.url) == (
        len(small_image()),
        3,
        store.object_url("outputs/j1/2/p.png"),
    )
    assert store.get("outputs/j1/2/p.png", max_bytes=1000) == small_image()


def test_a_file_that_the_engine_writes_elsewhere_is_streamed_from_it(store: ObjectStore, served: OutputFolder) -> None:
    """While the run goes on; a file of many parts too."""
    files = [file_of_engine("a.png", "j1"), file_of_engine("large.bin", "j1")]
    first, second = store_all(StoredOutputs(store, served, attempt=2, on_progress=ignore_progress), files)
    assert (first.filename, first.width) == ("a.png", 3)
    assert second.sha256 == hashlib.sha256(LARGE_FILE).hexdigest()
    assert store.head("outputs/j1/2/large.bin").size_bytes == len(LARGE_FILE)


def test_an_engine_that_breaks_off_a_file_makes_the_job_retryable(
    local_store: LocalStore, served: OutputFolder
) -> None:
    """Nothing stays in storage."""
    files = [file_of_engine("broken.bin", "j1")]
    with pytest.raises(EngineUnavailableError, match="broke off a file"):
        store_all(StoredOutputs(local_store, served, attempt=2, on_progress=ignore_progress), files)
    assert keys(local_store) == []


def test_a_run_that_fails_leaves_no_object(store: ObjectStore, output_dir: Path) -> None:
    """What was stored early is deleted."""

    def stored() -> None:
        wait_until(lambda: exists(store, "outputs/j1/2/a.png"), what="the early output")

    with pytest.raises(NodeFailedError, match="node 3 failed"):
        fail_after(storing(store, output_dir), [written(output_dir, "a.png")], stored)
    assert keys(store) == []


def test_a_run_that_fails_ends_uploads_that_are_on_their_way(tmp_path: Path, output_dir: Path) -> None:
    """One that has begun stops at its next read; one that waits never begins."""
    begun: list[str] = []
    both_began = threading.Barrier(3)

    def read_for_ever(key: str, source: Readable) -> None:
        begun.append(key)
        both_began.wait(20)
        while True:
            source.read(1)

    store = ChangedStore(f"file://{tmp_path}/store", read_for_ever)
    files = [written(output_dir, f"{number}.png") for number in range(3)]
    with pytest.raises(NodeFailedError, match="node 3 failed"):
        fail_after(storing(store, output_dir), files, lambda: both_began.wait(20))
    assert sorted(begun) == ["outputs/j1/2/0.png", "outputs/j1/2/1.png"]
    assert keys(store) == []


def test_an_upload_that_is_given_up_leaves_no_parts(s3_store: S3Store, s3_client: S3Client, s3_bucket: str) -> None:
    """Parts that nobody completes would be kept and paid for."""

    class Given(BinaryIO):
        """A stream that is given up after 10 MiB."""

        left_bytes = 10 * MIB

        def read(self, size: int = -1, /) -> bytes:
            self.left_bytes -= size
            if self.left_bytes < 0:
                raise InterruptedError
            return bytes(size)

    with pytest.raises(InterruptedError):
        s3_store.upload("given-up", Given(), size_bytes=64 * MIB, media_type="video/mp4")
    prefix = s3_store.object_url("given-up").removeprefix(f"s3://{s3_bucket}/")
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=s3_bucket, Prefix=prefix)
    assert keys(s3_store) == []


def test_an_early_upload_that_fails_is_done_again_at_the_end(tmp_path: Path, output_dir: Path) -> None:
    """A head start can't make a job fail that would have succeeded without it."""
    failures = [StorageUnavailableError("away")]

    def fail_once(_key: str, _source: Readable) -> None:
        if failures:
            raise failures.pop()

    store = ChangedStore(f"file://{tmp_path}/store", fail_once)
    file = written(output_dir, "a.png")
    with storing(store, output_dir) as outputs:
        outputs.begin([file])
        wait_until(lambda: not failures, what="the early upload")
        (output,) = outputs.finish([file])
    assert store.get("outputs/j1/2/a.png", max_bytes=10_000) == small_image()
    assert output.url


def test_an_output_that_can_not_be_stored_fails_the_job_and_takes_the_others_with_it(
    tmp_path: Path, output_dir: Path
) -> None:
    """No manifest will link to them."""

    def refuse_second(key: str, _source: Readable) -> None:
        if key.endswith("/2.png"):
            raise StorageUnavailableError("away")

    store = ChangedStore(f"file://{tmp_path}/store", refuse_second)
    files = [written(output_dir, f"{number}.png") for number in (1, 2, 3)]
    with pytest.raises(StorageUnavailableError):
        store_all(storing(store, output_dir), files)
    assert keys(store) == []


def test_the_error_that_counts_is_not_hidden_by_a_cleanup_that_fails(
    tmp_path: Path, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What stays in storage is logged, with its place."""
    store = LocalStore(f"file://{tmp_path}/store")
    lock = tmp_path / "store" / ".comfyfn" / "lock"

    def stored_and_broken() -> None:
        wait_until(lambda: exists(store, "outputs/j1/2/a.png"), what="the early output")
        lock.unlink()
        lock.mkdir()

    with pytest.raises(NodeFailedError, match="node 3 failed"):
        fail_after(storing(store, output_dir), [written(output_dir, "a.png")], stored_and_broken)
    assert "stay in storage below outputs/j1/2/" in caplog.text


def test_a_file_that_changed_after_it_was_stored_early_is_stored_again(store: ObjectStore, output_dir: Path) -> None:
    """A later node may have written the same name."""
    file = written(output_dir, "a.png")
    with storing(store, output_dir) as outputs:
        outputs.begin([file])
        wait_until(lambda: exists(store, "outputs/j1/2/a.png"), what="the early output")
        written(output_dir, "a.png", content=b"another picture")
        (output,) = outputs.finish([file])
    assert store.get("outputs/j1/2/a.png", max_bytes=100) == b"another picture"
    assert output.sha256 == hashlib.sha256(b"another picture").hexdigest()


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(bytes(10_000))])
def test_a_file_that_is_written_to_while_it_is_stored_is_the_nodes_failure(
    tmp_path: Path, output_dir: Path, change: Callable[[Path], object]
) -> None:
    """Shorter or longer, its digest would not be that of any file."""
    file = written(output_dir, "a.png")
    store = ChangedStore(f"file://{tmp_path}/store", lambda _key, _source: change(output_dir / "j1" / "a.png"))
    with pytest.raises(NodeFailedError, match=r"node 9: reported 'a\.png', and went on writing"):
        store_all(storing(store, output_dir), [file])
    assert keys(store) == []


def test_a_file_that_two_nodes_report_is_stored_once(tmp_path: Path, output_dir: Path) -> None:
    """Both outputs name the same object."""
    uploads: list[str] = []
    store = ChangedStore(f"file://{tmp_path}/store", lambda key, _source: uploads.append(key))
    files = [written(output_dir, "a.png", node_id=node_id) for node_id in ("1", "2")]
    with storing(store, output_dir) as outputs:
        first, second = outputs.finish(files)
    assert uploads == ["outputs/j1/2/a.png"]
    assert (first.node_id, second.node_id, first.url) == ("1", "2", second.url)


@pytest.mark.parametrize("filename", ["../../x", "/etc/passwd", "a\0b", "", ".."])
def test_a_hostile_name_does_not_disturb_the_run_and_is_refused_at_its_end(
    local_store: LocalStore, output_dir: Path, filename: str
) -> None:
    """The thread that follows the run must not fail."""
    file = EngineFile(node_id="9", kind="images", filename=filename, subfolder="", folder_type="output")
    with storing(local_store, output_dir) as outputs:
        outputs.begin([file])
        with pytest.raises(InputRefusedError, match="node 9: wrote"):
            outputs.finish([file])
    assert keys(local_store) == []


@pytest.mark.parametrize("filename", ["gone.png", "folder"])
def test_a_reported_file_that_can_not_be_read_is_the_nodes_failure(
    local_store: LocalStore, output_dir: Path, filename: str
) -> None:
    """There is nothing to link to."""
    (output_dir / "j1" / "folder").mkdir(parents=True)
    file = EngineFile(node_id="9", kind="images", filename=filename, subfolder="j1", folder_type="output")
    with storing(local_store, output_dir) as outputs:
        outputs.begin([file])
        with pytest.raises(NodeFailedError, match="which can't be read"):
            outputs.finish([file])


def test_progress_counts_bytes_once_the_run_has_ended(local_store: LocalStore, output_dir: Path) -> None:
    """What was stored early is done when the stage begins; until then the run's own progress is shown."""
    seen: list[Progress] = []
    early, late = written(output_dir, "a.png", content=bytes(MIB)), written(output_dir, "b.png", content=bytes(3 * MIB))
    with storing(local_store, output_dir, seen=seen) as outputs:
        outputs.begin([early])
        wait_until(lambda: exists(local_store, "outputs/j1/2/a.png"), what="the early output")
        assert seen == []
        outputs.finish([early, late])
    assert {progress.stage for progress in seen} == {"storing"}
    fractions = [progress.fraction for progress in seen]
    assert (fractions[0], fractions[-1]) == (0.25, 1.0)
    assert fractions == sorted(fractions)
    assert seen[-1].detail == "b.png"


def test_large_outputs_take_bounded_memory(store: ObjectStore, output_dir: Path, request: Any) -> None:
    """Two outputs of 150 MiB at once grow the process by what their parts take, not by their size."""
    account = request.getfixturevalue("s3_server").environ if store.url.startswith("s3:") else {}
    for name in ("a.mp4", "b.mp4"):
        written(output_dir, name, content=b"\0")
        os.truncate(output_dir / "j1" / name, 150 * MIB)
    command = [sys.executable, "-c", STORER, store.url, str(output_dir), "a.mp4", "b.mp4"]
    printed = subprocess.run(command, env=os.environ | account, check=True, capture_output=True, text=True).stdout
    digests, growth_bytes = re.fullmatch(r"(.+)\n(\d+)\n", printed).groups()  # type: ignore[union-attr]
    assert digests.split() == [hashlib.sha256(bytes(150 * MIB)).hexdigest()] * 2
    assert int(growth_bytes) < 100 * MIB  # S3: 80 with parts of 5 MiB, four of each in flight


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_a_stored_file_is_read_in_pieces_of_one_length(store: ObjectStore, size: int) -> None:
    """As often as it is asked for; only the last piece is shorter."""
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    store.put("outputs/j/1/a.bin", content)
    file = StoredFile(store, *described("a.bin", size))
    for _ in range(2):
        pieces = list(file.pieces(393_216))
        assert b"".join(pieces) == content
        assert {len(piece) for piece in pieces[:-1]} <= {393_216}
    assert len(file) == size


def test_a_stored_file_that_is_gone_or_shorter_is_an_error(store: ObjectStore) -> None:
    """Nothing is taken for its end that is not."""
    with pytest.raises(StorageUnavailableError, match="is gone"):
        list(StoredFile(store, *described("none.bin", 5)).pieces(4))
    store.put("outputs/j/1/short.bin", b"123")
    with pytest.raises(StorageUnavailableError):
        list(StoredFile(store, *described("short.bin", 5)).pieces(4))


def described(name: str, size_bytes: int) -> tuple[JobResult, Output]:
    """The result of attempt 1 of job `j`, and its only output."""
    output = Output("9", "images", name, "", "application/octet-stream", size_bytes, "")
    return JobResult("j", "completed", 1, "", "", (output,)), output

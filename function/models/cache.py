"""The model cache: brings the files that a job needs and pins them while it runs.

A job gets all its files or none: it waits, first come first served and holding nothing, until the whole set fits. A
file is downloaded once however many jobs of however many processes wait for it, and appears whole or not at all. What
is where is on disk, under locks (see `function.models.directory`); a process remembers only when it asked storage last.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.errors import ModelMissingError
from function.models.books import read_books, remove_strays
from function.models.directory import ModelDirectory, can_write, free_disk_bytes
from function.models.downloads import Downloads
from function.models.finding import Finder, file_of
from function.models.leasing import Leasing
from function.models.ledger import Ledger
from function.models.prefetching import Prefetcher
from function.models.references import ModelRef
from function.models.room import Room
from function.models.upkeep import CachedFile, Upkeep
from function.models.waiting import WaitingLine
from function.telemetry import ignore_progress
from function.transfer.journal import read_boot_id
from function.workflow import check_relative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from function.storage.origins import Origin
    from function.telemetry import Metrics, OnProgress
    from function.transfer.fetching import Fetcher

__all__ = ["CachedFile", "ModelCache"]


class ModelCache:
    """The models in one directory, which other caches in other processes may share.

    Args:
        model_dir: MODEL_DIR. Files there that the cache did not bring count as present and are left alone.
        store: Where models come from; the key of a model is `<folder>/<filename>`.
        fetcher: Brings their bytes.
        capacity_bytes: Upper bound of files, reservations and parts together, whoever brought them; 0: only the free
            disk bounds them. All processes that share the directory should name the same.
        metrics: Where hits, misses, evictions, bytes and waiting are counted.
        origin_of: Where the file of a reference can be fetched, and its key there; default: from `store`.
        clock: Monotonic seconds; deadlines are on this clock.
        measure_free_disk: Bytes that may still be written to a directory's disk.
        probe: Whether a directory can be written to; asked once. If not, nothing is ever written.
        boot_id: The machine's current boot: a file that was brought under another one is checked before its first use.
        parallel_downloads: Files of one job that are downloaded side by side.
        revalidate_seconds: For how long a file counts as current after storage was asked; 0: ask for every job; None:
            what is there stays as it is.
    """

    def __init__(  # noqa: PLR0913  (each varies in a test or a deployment, and has a default otherwise)
        self,
        model_dir: Path,
        store: Origin,
        *,
        fetcher: Fetcher,
        capacity_bytes: int,
        metrics: Metrics,
        origin_of: Callable[[ModelRef], tuple[Origin, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        measure_free_disk: Callable[[Path], int] = free_disk_bytes,
        probe: Callable[[Path], bool] = can_write,
        boot_id: str | None = None,
        parallel_downloads: int = 4,
        revalidate_seconds: float | None = 0.0,
    ) -> None:
        self._metrics = metrics
        self._directory = ModelDirectory(model_dir, probe=probe)
        self._line = WaitingLine(self._directory.own / "queue")
        changed = threading.Condition()
        self._room = Room(
            self._directory,
            capacity_bytes=capacity_bytes,
            free_disk_bytes=measure_free_disk,
            on_evict=metrics.cache_evictions.inc,
        )
        ledger = Ledger(self._directory, self._room, boot_id=boot_id or read_boot_id())
        finder = Finder(
            self._directory,
            origin_of or (lambda ref: (store, ref.key)),
            clock=clock,
            revalidate_seconds=revalidate_seconds,
            parallel=parallel_downloads,
        )
        downloads = Downloads(
            ledger,
            self._directory,
            fetcher,
            changed=changed,
            metrics=metrics,
            clock=clock,
            parallel=parallel_downloads,
        )
        self._leasing = Leasing(
            self._directory,
            finder,
            ledger,
            self._room,
            downloads,
            self._line,
            changed=changed,
            metrics=metrics,
            clock=clock,
        )
        self._prefetcher = Prefetcher(self._directory, finder, ledger, downloads, self._line)
        self._upkeep = Upkeep(self._directory)
        self._clean_up()
        metrics.cache_capacity_bytes.set(capacity_bytes)
        metrics.cache_size_bytes.set_function(self._measured_size)

    @property
    def read_only(self) -> bool:
        """Whether the model directory can't be written to."""
        return self._directory.read_only

    @property
    def size_bytes(self) -> int:
        """Bytes of the cache's files, of the room reserved for arriving ones, and of what downloads left."""
        if self._directory.read_only:
            return 0
        with self._directory.locked():
            return read_books(self._directory).size_bytes

    @contextmanager
    def ensure(
        self, refs: Iterable[ModelRef], *, deadline: float, on_progress: OnProgress = ignore_progress
    ) -> Iterator[dict[ModelRef, str]]:
        """Have these files present, current and pinned until the context closes.

        Args:
            refs: What a job needs; a missing optional one is left out.
            deadline: When to stop waiting, on the cache's clock.
            on_progress: Told in this thread, by bytes, while files arrive.

        Yields:
            The ETag of each file; it changes when the content does.

        Raises:
            ModelMissingError: Naming every file that is neither here nor in storage, before anything is downloaded.
            ModelTooLargeError: The set is larger than the cache or the disk.
            CacheBusyError: No room until the deadline.
            StorageUnavailableError: Storage or the disk failed, or the files did not arrive before the deadline.
            InputRefusedError: A name leads out of the model directory, or has two sources.
        """
        refs = tuple(refs)
        self._prefetcher.forget(refs)
        with self._metrics.cache_wait_seconds.time():
            etags, lease = self._leasing.get(refs, deadline=deadline, on_progress=on_progress)
        try:
            yield {ref: etags[ref.key] for ref in refs if ref.key in etags}
        finally:
            self._leasing.give_back(lease)

    def prefetch(self, refs: Iterable[ModelRef]) -> None:
        """Begin to bring files that a job will need; returns at once and never fails.

        Nothing is pinned, and nothing evicted that a running job uses or an earlier prefetch is about. Stops when a job
        waits for room. `ensure` joins what is on its way.
        """
        self._prefetcher.start(refs)

    def stop(self) -> None:
        """End all prefetches."""
        self._prefetcher.stop()

    # Upkeep

    def files(self) -> list[CachedFile]:
        """The cache's files that are in place, by key; files that it did not bring are not listed."""
        return self._upkeep.files()

    def pull(self, model: ModelRef | str, *, deadline: float, on_progress: OnProgress = ignore_progress) -> int:
        """Bring one file, given by reference or by key, or its new version; its size in bytes.

        Raises:
            ComfyfnError: As `ensure` does.
        """
        ref = _reference_to(model) if isinstance(model, str) else model
        with self.ensure([ref], deadline=deadline, on_progress=on_progress):
            status = file_of(ref, self._directory)
            if status is None:
                raise ModelMissingError(f"{ref.named_by} is nowhere")
            return status.st_size

    def preload(self, ref: ModelRef) -> bool:
        """Bring one file if there is room without evicting any; whether it is there afterwards.

        Like a prefetch it stops when a job waits for room.

        Raises:
            ModelMissingError, InputRefusedError, StorageUnavailableError: As `ensure` does.
        """
        self._prefetcher.preload(ref)
        return file_of(ref, self._directory) is not None

    def pin(self, key: str) -> None:
        """Never evict this file to make room, in any process, until it is unpinned; a new version stays pinned.

        Raises:
            ModelMissingError: The cache has no such file.
        """
        self._upkeep.set_pinned(key, pinned=True)

    def unpin(self, key: str) -> None:
        """Undo `pin`.

        Raises:
            ModelMissingError: The cache has no such file.
        """
        self._upkeep.set_pinned(key, pinned=False)

    def verify(self, key: str, *, on_bytes: Callable[[int], None] = lambda _count: None) -> bool:
        """Whether the bytes of a file are those that were downloaded; reads all of it.

        Args:
            key: The file.
            on_bytes: Called with the number of bytes that were read since the last call.

        Raises:
            ModelMissingError: The cache has no such file.
        """
        return self._upkeep.verify(key, on_bytes=on_bytes)

    def evict(self, key: str) -> None:
        """Remove a file.

        Raises:
            ModelMissingError: The cache has no such file.
            CacheBusyError: A job uses it, or it is pinned.
        """
        self._upkeep.evict(key)
        self._leasing.notify()

    def _clean_up(self) -> None:
        if not self._directory.read_only:
            with self._directory.locked():
                remove_strays(self._directory)
                self._room.shrink()

    def _measured_size(self) -> float:
        try:
            return self.size_bytes
        except OSError:
            return math.nan  # metrics are read while the disk fails, too


def _reference_to(key: str) -> ModelRef:
    """A reference that no node makes."""
    check_relative(key, what="model")
    folder, _, filename = key.partition("/")
    return ModelRef(folder, filename, node_id="", input_name="")

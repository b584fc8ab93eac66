"""Helpers: a model cache over a directory store that tests can steer, and a fetcher that is as small as can be."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from function.errors import StorageUnavailableError
from function.models.books import Books, read_books
from function.models.cache import ModelCache
from function.models.checking import crc64nvme_of
from function.models.directory import PART_SUFFIX
from function.models.references import ModelRef
from function.storage.local import LocalStore
from function.telemetry import Metrics, ignore_progress
from function.transfer.fetching import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from function.storage.objects import ObjectInfo, OnBytes
    from function.telemetry import Progress
    from function.transfer.fetching import Fetch

PATIENCE_SECONDS = 600.0 if "MODEL_MOUNTS" in os.environ else 30.0  # a network, perhaps an emulated machine


class SteeredStore(LocalStore):
    """A directory store that counts, and can be held, cut off or down.

    Attributes:
        heads: Keys in the order in which they were asked for.
        downloads: Keys in the order in which their downloads began.
        cut: Keys whose download breaks half way.
        short: Keys whose download ends a byte early without an error.
        endless: Keys whose download goes on until its job gives up.
        down: Whether the store answers nothing.
        gate: While clear, a download that has written everything waits before it returns.
        held: The downloads that wait at the gate.
        before_download: Called with the key before a download reads anything.
        after_download: Called with the key when a download has written everything but has not returned.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(f"file://{root}")
        self.heads: list[str] = []
        self.downloads: list[str] = []
        self.cut: set[str] = set()
        self.short: set[str] = set()
        self.endless: set[str] = set()
        self.down = False
        self.gate = threading.Event()
        self.gate.set()
        self.held: queue.Queue[str] = queue.Queue()
        self.before_download: Callable[[str], None] = lambda _key: None
        self.after_download: Callable[[str], None] = lambda _key: None

    def head(self, key: str) -> ObjectInfo:
        """As a directory does, unless down."""
        self.heads.append(key)
        self._answer()
        return super().head(key)

    def download(self, key: str, path: Path, *, etag: str, on_bytes: OnBytes | None = None) -> None:
        """As a directory does, unless held, cut or down."""
        self._answer()
        self.downloads.append(key)
        self.before_download(key)
        if key in self.cut:
            whole = self.get(key, max_bytes=1_000_000)
            path.write_bytes(whole[: len(whole) // 2])
            raise StorageUnavailableError(f"{key}: connection lost")
        super().download(key, path, etag=etag, on_bytes=on_bytes)
        if key in self.short:
            os.truncate(path, path.stat().st_size - 1)
        self.after_download(key)
        if not self.gate.is_set():
            self.held.put(key)
            assert self.gate.wait(PATIENCE_SECONDS)
        while key in self.endless:
            assert on_bytes
            on_bytes(0)
            time.sleep(0.001)

    def _answer(self) -> None:
        if self.down:
            raise StorageUnavailableError("storage is down")


class StoreFetcher:
    """Fetches from one store, whole and in one go; it goes on with nothing.

    Args:
        store: Whatever the URL says.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Bring one file."""
        self._store.download(wanted.key, wanted.part, etag=wanted.etag, on_bytes=on_bytes)
        return Fetched(crc64nvme_of(wanted.part))


@dataclass
class Bench:
    """A model directory, a store, and caches over them.

    MODEL_MOUNTS may name a directory at several paths, separated by colons: mounts of one export, as machines have
    them. Then model directories lie there; worker processes take the paths after the first in turn, the test the first.

    Attributes:
        root: Directory of everything else.
        capacity_bytes: Of every cache that is made from now on.
    """

    root: Path
    capacity_bytes: int = 0
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        """Make an empty store and the model directory's path."""
        self.store = SteeredStore(self.root / "store")
        mounts = os.environ.get("MODEL_MOUNTS")
        own = Path("models" if mounts is None else uuid.uuid4().hex)
        self.model_dir, *others = [Path(path) / own for path in (mounts or str(self.root)).split(":")]
        self._worker_dirs = itertools.cycle(others or [self.model_dir])

    def worker_dir(self) -> Path:
        """Where the next worker process sees the model directory."""
        return next(self._worker_dirs)

    def cache(self, **settings: Any) -> ModelCache:
        """A cache as after a start of the process."""
        self.metrics = Metrics()
        defaults = {"fetcher": StoreFetcher(self.store), "capacity_bytes": self.capacity_bytes}
        return ModelCache(self.model_dir, self.store, metrics=self.metrics, **defaults | settings)

    def put(self, name: str, content: bytes) -> ModelRef:
        """Store a checkpoint and refer to it."""
        model = ref(name)
        self.store.put(model.key, content)
        return model

    def path(self, model: ModelRef) -> Path:
        """Where the engine looks for a model."""
        return self.model_dir / model.key

    def visible(self) -> dict[str, bytes]:
        """Content of each model file by key, whoever brought it."""
        files = [path for path in self.model_dir.rglob("*.safetensors") if path.is_file()]
        return {path.relative_to(self.model_dir).as_posix(): path.read_bytes() for path in files}

    def parts(self) -> list[str]:
        """Names of unfinished files."""
        return [path.name for path in self.model_dir.rglob("*") if PART_SUFFIX in path.name]

    def fetches(self, what: str) -> list[str]:
        """Keys of what worker processes logged: `begin`, `done` or `double`."""
        log = self.root / "fetches.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [key for found, key, _etag in lines if found == what]

    def metric(self, name: str) -> float:
        """Value of one counter or gauge."""
        return self.metrics.registry.get_sample_value(f"comfyfn_{name}") or 0.0


class WorkerProcess:
    """One process over a shared directory; see `model_worker`.

    Args:
        address: The socket of the program that forks it.
        bench: Directory and capacity.
        revalidate_seconds: Of its cache.
    """

    def __init__(self, address: Path, bench: Bench, *, revalidate_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(str(address))
        self._answers = self._socket.makefile("r")
        self._tell(
            root=str(bench.root),
            model_dir=str(bench.worker_dir()),
            capacity_bytes=bench.capacity_bytes,
            revalidate_seconds=revalidate_seconds,
        )
        self.pid: int = self.answer()["pid"]
        self._jobs = 0

    def begin(self, *names: str, patience_seconds: float = PATIENCE_SECONDS) -> int:
        """Begin a job; its number. It answers when it has its models, or an error."""
        self._jobs += 1
        self._tell(do="begin", job=self._jobs, names=names, patience_seconds=patience_seconds)
        return self._jobs

    def run(self, *names: str) -> dict[str, Any]:
        """One whole job; its answer."""
        job = self.begin(*names)
        answer = self.answer()
        if "etags" in answer:
            self.end(job)
        return answer

    def let_end(self, job: int) -> None:
        """Have a job end as soon as it has its models."""
        self._tell(do="end", job=job)

    def end(self, job: int) -> None:
        """End a job that has its models."""
        self.let_end(job)
        assert self.answer() == {"job": job, "ended": True}

    def hold(self, *, hold: bool) -> None:
        """Stop downloads before their next piece, which answers `held`, or let them go on."""
        self._tell(do="hold", hold=hold)

    def die_at(self, event: int) -> None:
        """Have it die by SIGKILL after this many more changes to the disk."""
        self._tell(do="die_at", event=event)

    def size_bytes(self) -> int:
        """How large it says that the cache is."""
        self._tell(do="size")
        size: int = self.answer()["size_bytes"]
        return size

    def answer(self) -> dict[str, Any]:
        """What it says next; nothing if it has died."""
        try:
            line = self._answers.readline()
        except ConnectionResetError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer

    def kill(self) -> None:
        """Kill it, if it lives, and wait until the kernel has let its locks go."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists())  # a zombie may have threads that still hold locks
        self._answers.close()
        self._socket.close()

    def _tell(self, **command: Any) -> None:
        with suppress(BrokenPipeError):
            self._socket.sendall(json.dumps(command).encode() + b"\n")


@contextmanager
def worker_factory() -> Iterator[Callable[..., WorkerProcess]]:
    """A way to start worker processes quickly; in the end none is left."""
    started: list[WorkerProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder, "socket")
        program = subprocess.Popen([sys.executable, "-m", "tests.support.model_worker", str(address)])

        def start(bench: Bench, revalidate_seconds: float = 0.0) -> WorkerProcess:
            started.append(WorkerProcess(address, bench, revalidate_seconds=revalidate_seconds))
            return started[-1]

        try:
            wait_until(address.exists)
            yield start
        finally:
            for worker in started:
                worker.kill()
            program.kill()
            program.wait()


def ref(name: str, folder: str = "checkpoints") -> ModelRef:
    """A reference to `<folder>/<name>.safetensors`."""
    return ModelRef(folder, f"{name}.safetensors", "4", "ckpt_name")


def soon() -> float:
    """A deadline that a test never reaches."""
    return time.monotonic() + PATIENCE_SECONDS


def use(
    cache: ModelCache, *models: ModelRef, on_progress: Callable[[Progress], None] = ignore_progress
) -> dict[ModelRef, str]:
    """One job that needs these models and ends at once."""
    with cache.ensure(models, deadline=soon(), on_progress=on_progress) as etags:
        return etags


def hold(stack: ExitStack, cache: ModelCache, *models: ModelRef) -> dict[ModelRef, str]:
    """A job that runs until the stack closes."""
    return stack.enter_context(cache.ensure(models, deadline=soon()))


def books(cache: ModelCache) -> Books:
    """What is on disk."""
    with cache._directory.locked():
        return read_books(cache._directory)


def waiting_jobs(cache: ModelCache) -> int:
    """How many jobs are in the queue."""
    with cache._directory.locked():
        return len(cache._line.waiting())


def arriving(cache: ModelCache, model: ModelRef) -> bool:
    """Whether somebody brings a file."""
    return model.key in books(cache).arriving


def in_use(cache: ModelCache, model: ModelRef) -> bool:
    """Whether a job uses a file that is in place."""
    return any(file.in_use for file in cache.files() if file.key == model.key)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or process is about to do."""
    deadline = soon()
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)

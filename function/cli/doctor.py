"""`comfyfn doctor`: check everything that a job will need, and say in words what to mend."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import closing
from typing import TYPE_CHECKING

import click

from function.cli.findings import Finding, show_finding
from function.config import Settings, read_settings, shown_settings
from function.engine.api import EngineApi
from function.engine.command import engine_command
from function.engine.process import HOST
from function.engine.supervisor import Supervisor
from function.errors import ComfyfnError, EngineUnavailableError
from function.gpu import read_gpus
from function.models.directory import can_write
from function.models.mounts import list_mounts, nfs_problem
from function.setting_values import GIB
from function.storage import open_store, probe_create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ENGINE_START_SECONDS = 180
_LITTLE_DISK_BYTES = 5 * GIB


@click.command(name="doctor")
def command() -> None:
    """Check settings, storage, engine, GPU and disk; exit with 1 if something fails."""
    try:
        settings = read_settings(os.environ)
    except ComfyfnError as error:
        show_finding(Finding("fail", "settings", error.message))
        raise SystemExit(1) from error
    failed = False
    for check in CHECKS:
        for finding in check(settings):
            show_finding(finding)
            failed = failed or finding.level == "fail"
    raise SystemExit(int(failed))


def check_settings(_settings: Settings) -> Iterator[Finding]:
    """Every setting that the environment gives."""
    yield Finding("ok", "settings", ", ".join(shown_settings(os.environ)) or "all at their defaults")


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Each store answers; the results store has create-if-absent and lets us write."""
    for name in ("models", "uploads", "workflows", "results"):
        url: str = getattr(settings, f"{name}_url")
        try:
            store = open_store(url)
            if name == "results":
                probe_create(store)
                text = f"{url}: readable, writable, create-if-absent works"
            else:
                text = f"{url}: {'readable' if next(store.list_objects(), None) else 'readable, empty'}"
        except ComfyfnError as error:
            yield Finding("fail", f"storage {name}", error.message)
        else:
            yield Finding("ok", f"storage {name}", text)


def check_disk(settings: Settings) -> Iterator[Finding]:
    """The directories can be written and the cache fits on its disk."""
    yield _check_model_dir(settings.model_dir)
    for name in ("input_dir", "output_dir"):
        yield _check_directory(name.upper(), getattr(settings, name))
    if problem := nfs_problem(settings.model_dir, list_mounts()):
        yield Finding("warn", "MODEL_DIR", f"{settings.model_dir} is on NFS: {problem}")
    free = _free_bytes(settings.model_dir)
    wanted = settings.cache_capacity_bytes
    text = f"{free / GIB:.1f} GiB free for the cache"
    if wanted > free:
        yield Finding("warn", "disk", f"{text}, LRU_CACHE_SIZE_GB asks for {wanted / GIB:.1f}: lower it or add disk")
    elif free < _LITTLE_DISK_BYTES:
        yield Finding("warn", "disk", f"{text}: most models need more; point MODEL_DIR to a larger disk")
    else:
        yield Finding("ok", "disk", text)


def _check_model_dir(path: Path) -> Finding:
    """It is read-only as a whole, or all its folders can be written: downloads go into them."""
    finding = _check_directory("MODEL_DIR", path, read_only_is_fine=True)
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) if finding.level == "ok" else []
    closed = ", ".join(folder.name for folder in folders if _is_for_models(folder) and not can_write(folder))
    if not closed:
        return finding
    remedy = f"chown -R {os.getuid()}:{os.getgid()} {path}"
    return Finding("fail", "MODEL_DIR", f"{path}: models can't be downloaded into {closed}; {remedy}")


def _is_for_models(folder: Path) -> bool:
    """Whether it isn't one of a file system's own."""
    return folder.name != "lost+found" and not folder.name.startswith(".")


def _check_directory(variable: str, path: Path, *, read_only_is_fine: bool = False) -> Finding:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Finding("ok", variable, f"{path}: writable")
    except OSError as error:
        if read_only_is_fine and path.is_dir():
            return Finding("warn", variable, f"{path}: {error.strerror}; models must be there already")
        return Finding("fail", variable, f"{path}: {error.strerror}; make it writable or set {variable}")


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_gpu(settings: Settings) -> Iterator[Finding]:
    """What NVML says."""
    status = read_gpus(visible=settings.visible_gpus)
    for gpu in status.gpus:
        memory = f"{gpu.memory_total_bytes / GIB:.0f} GiB" if gpu.memory_total_bytes else "shared memory"
        yield Finding("ok", f"gpu {gpu.index}", f"{gpu.name}, {memory}, driver {gpu.driver_version}")
    if status.problem:
        yield Finding("fail", "gpu", f"{status.problem}; check the driver on the node with nvidia-smi")
    elif not status.gpus:
        needed = settings.engine == "comfyui" and "--cpu" not in settings.command
        remedy = "; give the container a GPU, or add --cpu to CMD" if needed else "; the embedded engine needs none"
        yield Finding("fail" if needed else "ok", "gpu", (status.absence or "no GPU") + remedy)


def check_engine(settings: Settings) -> Iterator[Finding]:
    """Start the engine, see it ready, stop it; or find that of a function that runs, which holds its port."""
    if settings.engine == "none":
        yield Finding("ok", "engine", f"none: jobs are sent to {settings.dispatch_url}")
        return
    command = engine_command(settings)
    if command.port and _is_comfyui(command.port):
        yield Finding("ok", "engine", f"{settings.engine}: already running, answers on port {command.port}")
        return
    supervisor = Supervisor(command)
    started = time.monotonic()
    click.echo(f"      starting the engine ({settings.engine})", err=True)
    supervisor.start()
    try:
        supervisor.wait_ready(started + _ENGINE_START_SECONDS)
        yield Finding("ok", "engine", f"{settings.engine}: ready after {time.monotonic() - started:.1f} s")
    except ComfyfnError as error:
        yield Finding("fail", "engine", f"{error.message}; check CMD and COMFY_HOME")
    finally:
        supervisor.stop()


def _is_comfyui(port: int) -> bool:
    """Whether what answers there tells of itself as ComfyUI does."""
    with closing(EngineApi(HOST, port)) as api:
        try:
            return "system" in api.system_stats()
        except EngineUnavailableError:
            return False


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_settings,
    check_storage,
    check_disk,
    check_gpu,
    check_engine,
)

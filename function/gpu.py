"""What NVML says about the GPUs; no GPU is an answer, not an error.

NVML numbers GPUs in the order of their PCI bus and does not know CUDA_VISIBLE_DEVICES. The selection here follows
CUDA's rules (CUDA C++ Programming Guide, "CUDA Environment Variables") for the simple forms: a list of indices or
UUIDs, also abbreviated, in the order given, up to the first that names no GPU; an empty list or -1 hides them all. An
index is NVML's, which is CUDA's where all GPUs are of one model or CUDA_DEVICE_ORDER is PCI_BUS_ID. A list that names
MIG instances selects nothing here: every GPU is shown.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

import pynvml
from pynvml import NVMLError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from function.telemetry import Metrics

    _T = TypeVar("_T")

# Fallen off the bus, or in need of a reset that nobody in a container can do.
_LOST = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)
_LOST_SECONDS = 10.0  # for how long a reading answers whether a GPU is lost
# A GPU without the sensor (unified memory, MIG), a container without the right, a driver older than the function.
_NOT_TOLD = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_FunctionNotFound)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML read it; None where this GPU or its driver does not tell.

    Attributes:
        index: NVML's number, by PCI bus.
        uuid: `GPU-...`, the same in every container.
        name: The model, for people.
        memory_used_bytes: Memory in use by all processes and the driver.
        memory_total_bytes: Memory of the board.
        utilization_ratio: Part of the last sample period in which a kernel ran, 0 to 1.
        temperature_celsius: Temperature of the chip.
        driver_version: For example `570.86.15`.
    """

    index: int
    uuid: str
    name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization_ratio: float | None
    temperature_celsius: float | None
    driver_version: str


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """All GPUs that this process may use, and what is wrong.

    Attributes:
        gpus: Those that answer, in CUDA's order.
        problem: One line with what NVML said of a GPU or driver that should work and does not; "" if all is well.
        absence: One line with why there is no GPU, where that is no fault; "" if there is one or there is a problem.
        lost: Indices of those that are lost: no process can use them until the node is reset.
    """

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    absence: str = ""
    lost: tuple[int, ...] = ()


class NvmlReader:
    """Reads the GPUs again and again; opens NVML for the first reading and again after one that found a problem.

    A lost GPU may not tell its UUID any more, or not be listed at all, so the reader remembers those that it has seen.

    NVML does not survive a fork: the reader belongs to the process that reads.

    Args:
        visible: The value of CUDA_VISIBLE_DEVICES; None if it is not set.
        clock: Monotonic seconds.
    """

    def __init__(self, *, visible: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._visible = visible
        self._clock = clock
        self._lock = Lock()
        self._open = False
        self._last = (-_LOST_SECONDS, GpuStatus())
        self._seen: dict[str, int] = {}

    def read(self) -> GpuStatus:
        """Read every visible GPU: a few calls into the driver each, from any thread."""
        with self._lock:
            status = self._read()
            if status.problem:
                self._close()
            self._last = (self._clock(), status)
            return status

    def lost(self) -> str:
        """One line that names the lost GPUs, "" if there are none; may be up to 10 s old."""
        read_at, status = self._last
        if self._clock() - read_at >= _LOST_SECONDS:
            status = self.read()
        return f"{status.problem}: no job can run on this node" if status.lost else ""

    def stop(self) -> None:
        """Close NVML; a later reading opens it again."""
        with self._lock:
            self._close()

    def _read(self) -> GpuStatus:
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            readings, gone = _recognised(_read_all(), self._seen)
            self._seen |= {reading.uuid: reading.index for reading in readings if reading.uuid}
            return _status(readings, gone, self._visible)
        except pynvml.NVMLError_LibraryNotFound:
            return GpuStatus(absence="no GPU: no NVIDIA driver is installed (libnvidia-ml.so.1 does not load)")
        except pynvml.NVMLError_DriverNotLoaded:
            return GpuStatus(absence="no GPU: the NVIDIA driver is not loaded")
        except NVMLError as error:
            return GpuStatus(problem=f"NVML: {error}")

    def _close(self) -> None:
        if self._open:
            self._open = False
            with suppress(NVMLError):
                pynvml.nvmlShutdown()


def read_gpus(*, visible: str | None = None) -> GpuStatus:
    """Read the GPUs once; `visible` as in `NvmlReader`."""
    reader = NvmlReader(visible=visible)
    try:
        return reader.read()
    finally:
        reader.stop()


def update_metrics(metrics: Metrics, status: GpuStatus) -> None:
    """Set the GPU gauges, most by UUID; a GPU or a value that is gone leaves no stale number behind."""
    gauges = {
        "memory_used_bytes": metrics.gpu_memory_used_bytes,
        "memory_total_bytes": metrics.gpu_memory_total_bytes,
        "utilization_ratio": metrics.gpu_utilization_ratio,
        "temperature_celsius": metrics.gpu_temperature_celsius,
    }
    metrics.gpu_lost.set(len(status.lost))
    for field, gauge in gauges.items():
        gauge.clear()
        for gpu in status.gpus:
            value: float | None = getattr(gpu, field)
            if value is not None:
                gauge.labels(gpu=gpu.uuid).set(value)


@dataclass(frozen=True, slots=True)
class _Reading:
    index: int
    uuid: str
    gpu: Gpu | None
    problem: str
    lost: bool = False

    def is_named(self, name: str) -> bool:
        return name == str(self.index) or (name.startswith("GPU-") and self.uuid.startswith(name))


def _read_all() -> list[_Reading]:
    driver_version = str(pynvml.nvmlSystemGetDriverVersion())
    return [_read_one(index, driver_version) for index in range(pynvml.nvmlDeviceGetCount())]


def _read_one(index: int, driver_version: str) -> _Reading:
    uuid = ""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        utilization = _told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        gpu = Gpu(
            index=index,
            uuid=uuid,
            name=str(pynvml.nvmlDeviceGetName(handle)),
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            utilization_ratio=None if utilization is None else utilization.gpu / 100,
            temperature_celsius=_told(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            driver_version=driver_version,
        )
    except NVMLError as error:
        return _Reading(index, uuid, None, f"GPU {index}: {error}", lost=isinstance(error, _LOST))
    return _Reading(index, uuid, gpu, "")


def _recognised(readings: list[_Reading], seen: Mapping[str, int]) -> tuple[list[_Reading], list[_Reading]]:
    """The readings with UUIDs that were told earlier, and one for each GPU that is listed no more.

    Args:
        readings: What was read now.
        seen: UUIDs that were read earlier, with the index of each at that time.
    """
    told = {reading.uuid for reading in readings}
    missing = {uuid: index for uuid, index in seen.items() if uuid not in told}
    recognised = []
    for reading in readings:
        uuid = reading.uuid or next((uuid for uuid, index in missing.items() if index == reading.index), "")
        missing.pop(uuid, None)
        recognised.append(replace(reading, uuid=uuid))
    return recognised, [
        _Reading(index, uuid, None, f"GPU {index} ({uuid}): it is listed no more", lost=True)
        for uuid, index in missing.items()
    ]


def _told(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except _NOT_TOLD:
        return None


def _status(readings: list[_Reading], gone: list[_Reading], visible: str | None) -> GpuStatus:
    if not readings and not gone:
        return GpuStatus(absence="no GPU: NVML lists none")
    if visible in {"", "-1"}:
        return GpuStatus(absence="no GPU: CUDA_VISIBLE_DEVICES hides them all")
    unknown = ""
    if visible is not None and "MIG-" not in visible:
        readings, unknown = _select(readings, gone, visible)
    else:
        readings = readings + gone
    problems = [reading.problem for reading in readings if reading.problem]
    if unknown:
        problems.append(f"CUDA_VISIBLE_DEVICES={visible!r}: NVML lists no GPU {unknown!r}")
    return GpuStatus(
        gpus=tuple(reading.gpu for reading in readings if reading.gpu),
        problem="; ".join(problems),
        lost=tuple(reading.index for reading in readings if reading.lost),
    )


def _select(readings: list[_Reading], gone: list[_Reading], visible: str) -> tuple[list[_Reading], str]:
    """Return what the names in the list select and the first name that selects nothing or more than one.

    A GPU that is gone is selected by a name that no other GPU has.
    """
    selected: list[_Reading] = []
    for name in (part.strip() for part in visible.split(",")):
        named = _named(name, readings) or _named(name, gone)
        if len(named) != 1:
            return selected, name
        selected += named
    return selected, ""


def _named(name: str, readings: list[_Reading]) -> list[_Reading]:
    return [reading for reading in readings if reading.is_named(name)]

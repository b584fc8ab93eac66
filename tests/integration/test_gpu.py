"""The GPU reader through the real NVML binding, with a small library in the driver's place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gpu import run_python

if TYPE_CHECKING:
    from pathlib import Path

FIRST = "GPU-10000000-aaaa-bbbb-cccc-dddddddddddd"
SECOND = "GPU-20000000-aaaa-bbbb-cccc-dddddddddddd"
GIB = 2**30

READ = """
import dataclasses, json, os
from function.gpu import read_gpus
print(json.dumps(dataclasses.asdict(read_gpus(visible=os.environ.get("CUDA_VISIBLE_DEVICES")))))
"""


def read(library_dir: Path, **environ: str) -> dict[str, Any]:
    """What `read_gpus` returns in a process of its own."""
    status: dict[str, Any] = json.loads(run_python(READ, library_dir, **environ))
    return status


def test_every_gpu_is_read(fake_nvml: Path) -> None:
    """Each GPU comes with identity, memory in bytes, utilization as a ratio and temperature."""
    status = read(fake_nvml)
    assert status["gpus"][0] == {
        "index": 0,
        "uuid": FIRST,
        "name": "Fake GPU",
        "memory_used_bytes": GIB,
        "memory_total_bytes": 8 * GIB,
        "utilization_ratio": 0.25,
        "temperature_celsius": 41,
        "driver_version": "570.86.15",
    }
    assert [gpu["uuid"] for gpu in status["gpus"]] == [FIRST, SECOND]
    assert (status["problem"], status["absence"]) == ("", "")


def test_a_missing_sensor_is_none(fake_nvml: Path) -> None:
    """A GPU without a temperature sensor is read all the same."""
    second = read(fake_nvml)["gpus"][1]
    assert second["temperature_celsius"] is None
    assert second["utilization_ratio"] == 0.25


@pytest.mark.parametrize("code", ["3", "4", "13"], ids=["not supported", "no permission", "function not found"])
def test_values_that_are_not_told_are_none(fake_nvml: Path, code: str) -> None:
    """A GPU that tells neither memory nor utilization nor temperature is no problem."""
    status = read(fake_nvml, FAKE_NVML_MUTE=code, FAKE_NVML_COUNT="1")
    values = ("memory_used_bytes", "memory_total_bytes", "utilization_ratio", "temperature_celsius")
    assert [status["gpus"][0][value] for value in values] == [None] * 4
    assert status["problem"] == ""


def test_no_library_is_no_gpu(tmp_path: Path) -> None:
    """A machine without NVIDIA's library has no GPU, which is not an error."""
    (tmp_path / "libnvidia-ml.so.1").touch()  # does not load, and hides the library of a machine that has one
    status = read(tmp_path)
    assert status["gpus"] == []
    assert status["problem"] == ""
    assert status["absence"].startswith("no GPU: no NVIDIA driver is installed")


@pytest.mark.parametrize(
    ("environ", "absence"),
    [
        ({"FAKE_NVML_INIT": "9"}, "no GPU: the NVIDIA driver is not loaded"),
        ({"FAKE_NVML_COUNT": "0"}, "no GPU: NVML lists none"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "no GPU: CUDA_VISIBLE_DEVICES hides them all"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "no GPU: CUDA_VISIBLE_DEVICES hides them all"),
    ],
)
def test_absence_says_why(fake_nvml: Path, environ: dict[str, str], absence: str) -> None:
    """Where there is no GPU the status says why, and it is not a problem."""
    assert read(fake_nvml, **environ) == {"gpus": [], "problem": "", "absence": absence, "lost": []}


def test_a_driver_that_fails_is_quoted(fake_nvml: Path) -> None:
    """A driver that does not fit its library is a problem in NVML's own words."""
    status = read(fake_nvml, FAKE_NVML_INIT="18")
    assert status["gpus"] == []
    assert status["problem"] == "NVML: RM has detected an NVML/RM version mismatch."


def test_a_lost_gpu_leaves_the_others(fake_nvml: Path) -> None:
    """A GPU that fell off the bus is named in the problem while the other one is still read."""
    status = read(fake_nvml, FAKE_NVML_LOST="0")
    assert [gpu["uuid"] for gpu in status["gpus"]] == [SECOND]
    assert (status["problem"], status["lost"]) == ("GPU 0: GPU is lost", [0])


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", [SECOND]),
        ("1, 0", [SECOND, FIRST]),
        (SECOND, [SECOND]),
        ("GPU-2", [SECOND]),
        (f"MIG-{FIRST}/1/0", [FIRST, SECOND]),
    ],
)
def test_cuda_visible_devices_selects(fake_nvml: Path, visible: str, uuids: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES selects and orders by index or UUID; MIG instances select nothing."""
    status = read(fake_nvml, CUDA_VISIBLE_DEVICES=visible)
    assert [gpu["uuid"] for gpu in status["gpus"]] == uuids
    assert status["problem"] == ""


@pytest.mark.parametrize(("visible", "unknown"), [("0,7,1", "7"), ("0,GPU-,1", "GPU-")])
def test_an_unknown_visible_device_is_a_problem(fake_nvml: Path, visible: str, unknown: str) -> None:
    """A name that selects no single GPU ends the list, as in CUDA, and is reported."""
    status = read(fake_nvml, CUDA_VISIBLE_DEVICES=visible)
    assert [gpu["uuid"] for gpu in status["gpus"]] == [FIRST]
    assert status["problem"] == f"CUDA_VISIBLE_DEVICES={visible!r}: NVML lists no GPU {unknown!r}"


def test_the_loss_of_a_hidden_gpu_is_no_problem(fake_nvml: Path) -> None:
    """A lost GPU that belongs to somebody else is not reported."""
    assert read(fake_nvml, FAKE_NVML_LOST="0", CUDA_VISIBLE_DEVICES="1")["problem"] == ""


@pytest.mark.parametrize("visible", [FIRST, "GPU-1", "0", ""], ids=["uuid", "part of it", "index", "all"])
def test_a_gpu_that_is_lost_while_it_is_watched(fake_nvml: Path, visible: str) -> None:
    """Also where it is known by its UUID, which it does not tell any more; and it is found again."""
    code = """
import os
from function.gpu import NvmlReader
reader = NvmlReader(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
before = reader.read()
os.environ["FAKE_NVML_LOST"] = "0"
lost = reader.read()
del os.environ["FAKE_NVML_LOST"]
print(lost.lost, lost.problem, reader.read() == before, sep=";")
"""
    environ = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert run_python(code, fake_nvml, **environ).strip() == "(0,);GPU 0: GPU is lost;True"


@pytest.mark.parametrize(("visible", "lost"), [(SECOND, "(1,)"), ("1", "(1,)"), ("", "(1,)"), (FIRST, "()")])
def test_a_gpu_that_is_listed_no_more_is_lost(fake_nvml: Path, visible: str, lost: str) -> None:
    """Unless it belongs to somebody else."""
    code = """
import os
from function.gpu import NvmlReader
reader = NvmlReader(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
reader.read()
os.environ["FAKE_NVML_COUNT"] = "1"
print(reader.read().lost, reader.lost(), sep=";")
"""
    environ = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    line = f"GPU 1 ({SECOND}): it is listed no more: no job can run on this node" if lost != "()" else ""
    assert run_python(code, fake_nvml, **environ).strip() == f"{lost};{line}"


def test_nvml_stays_open_between_readings(fake_nvml: Path) -> None:
    """A reader opens NVML once for many readings and closes it when it stops."""
    code = """
import ctypes
from function.gpu import NvmlReader
reader = NvmlReader()
for _ in range(3):
    reader.read()
nvml = ctypes.CDLL("libnvidia-ml.so.1")
opened = nvml.fake_nvml_opened()
reader.stop()
reader.stop()
print(nvml.fake_nvml_inits(), opened, nvml.fake_nvml_opened())
"""
    assert run_python(code, fake_nvml).split() == ["1", "1", "0"]


def test_a_reader_recovers(fake_nvml: Path) -> None:
    """The reading after a problem or an absence sees what has changed."""
    code = """
import os
from function.gpu import NvmlReader
reader = NvmlReader()
for environ in ({"FAKE_NVML_INIT": "9"}, {"FAKE_NVML_LOST": "1"}, {}):
    os.environ.update({"FAKE_NVML_INIT": "", "FAKE_NVML_LOST": ""} | environ)
    print(len(reader.read().gpus))
reader.stop()
"""
    assert run_python(code, fake_nvml).split() == ["0", "1", "2"]


def test_a_loss_is_noticed_and_forgotten_within_ten_seconds(fake_nvml: Path) -> None:
    """Whoever asks often has NVML read only now and then; what is lost is named."""
    code = """
import os
from function.gpu import NvmlReader
now = 0.0
reader = NvmlReader(clock=lambda: now)
for lost, now in (("", 0.0), ("1", 9.0), ("1", 10.0), ("", 19.0), ("", 20.0)):
    os.environ["FAKE_NVML_LOST"] = lost
    print(repr(reader.lost()))
reader.stop()
"""
    lost = repr("GPU 1: GPU is lost: no job can run on this node")
    assert run_python(code, fake_nvml).splitlines() == ["''", "''", lost, lost, "''"]


def test_metrics_follow_the_gpus(fake_nvml: Path) -> None:
    """Gauges carry the UUID, a missing sensor has no sample and a lost GPU leaves none behind."""
    code = """
import os
from prometheus_client import generate_latest
from function.gpu import read_gpus, update_metrics
from function.telemetry import Metrics
metrics = Metrics()
for lost in ("", "0"):
    os.environ["FAKE_NVML_LOST"] = lost
    update_metrics(metrics, read_gpus())
    print(generate_latest(metrics.registry).decode())
"""
    samples = [line for line in run_python(code, fake_nvml).splitlines() if line.startswith("comfyfn_gpu_")]
    assert samples == [
        "comfyfn_gpu_lost 0.0",
        f'comfyfn_gpu_memory_used_bytes{{gpu="{FIRST}"}} 1.073741824e+09',
        f'comfyfn_gpu_memory_used_bytes{{gpu="{SECOND}"}} 2.147483648e+09',
        f'comfyfn_gpu_memory_total_bytes{{gpu="{FIRST}"}} 8.589934592e+09',
        f'comfyfn_gpu_memory_total_bytes{{gpu="{SECOND}"}} 8.589934592e+09',
        f'comfyfn_gpu_utilization_ratio{{gpu="{FIRST}"}} 0.25',
        f'comfyfn_gpu_utilization_ratio{{gpu="{SECOND}"}} 0.25',
        f'comfyfn_gpu_temperature_celsius{{gpu="{FIRST}"}} 41.0',
        "comfyfn_gpu_lost 1.0",
        f'comfyfn_gpu_memory_used_bytes{{gpu="{SECOND}"}} 2.147483648e+09',
        f'comfyfn_gpu_memory_total_bytes{{gpu="{SECOND}"}} 8.589934592e+09',
        f'comfyfn_gpu_utilization_ratio{{gpu="{SECOND}"}} 0.25',
    ]

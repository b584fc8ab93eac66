"""Functions that see the same GPUs: each takes another one, through the real NVML binding and real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from function.config import read_settings
from function.errors import SettingsError
from function.gpu import GpuStatus
from function.gpu_claim import claim_gpu
from tests.support.gpu import run_python
from tests.support.processes import child_pids, runs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.function_process import FunctionFactory

GPUS = [f"GPU-{number}0000000-aaaa-bbbb-cccc-dddddddddddd" for number in range(1, 5)]

# Claims, says what it got, and lives until its stdin closes.
CLAIM = """
import os, sys
from pathlib import Path
from function.errors import SettingsError
from function.gpu_claim import claim_gpu
try:
    print(claim_gpu(Path(sys.argv[1]), visible=os.environ.get("CUDA_VISIBLE_DEVICES"))[0], flush=True)
except SettingsError as error:
    sys.exit(error.message)
sys.stdin.read()
"""


class Claimant:
    """A process that claims a GPU."""

    def __init__(self, directory: Path, library_dir: Path, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(directory)],
            env=os.environ | {"LD_LIBRARY_PATH": str(library_dir), "FAKE_NVML_COUNT": "4"} | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def gpu(self) -> str:
        """What it got; "" if it got none."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Kill it; what it said on stderr."""
        self.process.kill()
        return self.process.communicate()[1].strip()


@contextmanager
def claimants(count: int, directory: Path, library_dir: Path, **environ: str) -> Iterator[list[Claimant]]:
    """So many processes at once; at the end they are killed."""
    started = [Claimant(directory, library_dir, **environ) for _ in range(count)]
    try:
        yield started
    finally:
        for claimant in started:
            claimant.end()


def test_as_many_processes_as_gpus_claim_different_ones(fake_nvml: Path, tmp_path: Path) -> None:
    """Four processes that start at the same moment have four GPUs."""
    with claimants(4, tmp_path / "claims", fake_nvml) as four:
        assert sorted(claimant.gpu for claimant in four) == GPUS


def test_one_process_too_many_is_told_so(fake_nvml: Path, tmp_path: Path) -> None:
    """The fifth process of four GPUs ends with one line that says what to do."""
    with claimants(4, tmp_path, fake_nvml) as four:
        assert all(claimant.gpu for claimant in four)
        fifth = Claimant(tmp_path, fake_nvml)
        assert fifth.gpu == ""
        assert fifth.process.wait(60) == 1
        expected = f"GPU_CLAIM_DIR='{tmp_path}': all 4 GPUs are taken; run no more replicas than GPUs"
        assert fifth.end() == expected


def test_the_gpu_of_a_killed_process_is_free_at_once(fake_nvml: Path, tmp_path: Path) -> None:
    """The next process gets the GPU of the one that was killed, and no other."""
    with claimants(4, tmp_path, fake_nvml) as four:
        claimed = [claimant.gpu for claimant in four]
        four[2].end()
        with claimants(1, tmp_path, fake_nvml) as (successor,):
            assert successor.gpu == claimed[2]


def test_only_visible_gpus_are_claimed(fake_nvml: Path, tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES keeps the other GPUs for others."""
    with claimants(1, tmp_path, fake_nvml, CUDA_VISIBLE_DEVICES="2") as (claimant,):
        assert claimant.gpu == GPUS[2]


def test_a_lost_gpu_is_not_claimed(fake_nvml: Path, tmp_path: Path) -> None:
    """A GPU that has fallen off the bus is left alone as long as another one answers."""
    with claimants(1, tmp_path, fake_nvml, FAKE_NVML_LOST="0") as (claimant,):
        assert claimant.gpu == GPUS[1]


def test_without_a_gpu_there_is_nothing_to_claim(tmp_path: Path) -> None:
    """The error says why there is no GPU."""
    absence = "no GPU: NVML lists none"
    with pytest.raises(SettingsError, match=absence) as caught:
        claim_gpu(tmp_path, read=lambda **_: GpuStatus(absence=absence))
    assert caught.value.message == f"GPU_CLAIM_DIR='{tmp_path}': {absence}"


def test_a_directory_that_is_none_is_an_error(fake_nvml: Path, tmp_path: Path) -> None:
    """A file in the directory's place is named, not a stack trace."""
    (tmp_path / "file").touch()
    claimant = Claimant(tmp_path / "file", fake_nvml)
    assert claimant.process.wait(60) == 1
    assert claimant.end() == f"GPU_CLAIM_DIR='{tmp_path}/file': File exists; make it writable"


def test_nvml_is_read_again_after_a_fork(fake_nvml: Path, tmp_path: Path) -> None:
    """What claims closes NVML, so that a worker forked from it opens its own."""
    code = f"""
import os
from pathlib import Path
from function.gpu import read_gpus
from function.gpu_claim import claim_gpu
uuid, _ = claim_gpu(Path({str(tmp_path)!r}))
if os.fork() == 0:
    print([gpu.uuid for gpu in read_gpus(visible=uuid).gpus], flush=True)
    os._exit(0)
os.wait()
"""
    assert run_python(code, fake_nvml).strip() == str(GPUS[:1])


def test_functions_with_one_directory_run_on_different_gpus(
    function_factory: FunctionFactory, fake_nvml: Path, tmp_path: Path
) -> None:
    """Each function's engine sees one GPU, its metrics show that one, and it keeps it when its worker is replaced."""
    environ = {
        "LD_LIBRARY_PATH": str(fake_nvml),
        "FAKE_NVML_COUNT": "2",
        "GPU_CLAIM_DIR": str(tmp_path / "claims"),
    }
    both = [function_factory(**environ), function_factory(**environ)]
    assert sorted(gpu_of_engine(function.engine_pid) for function in both) == GPUS[:2]
    first = both[0]
    gpu = gpu_of_engine(first.engine_pid)
    metrics = first.get("/metrics").body.decode()
    assert f'comfyfn_gpu_memory_total_bytes{{gpu="{gpu}"}}' in metrics
    assert metrics.count("comfyfn_gpu_memory_total_bytes{") == 1

    worker = first.worker_pid
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not runs(worker) and bool(child_pids(first.pid)), what="another worker")
    wait_until(first.is_ready, what="the new worker's engine", timeout_seconds=120)
    assert gpu_of_engine(first.engine_pid) == gpu


def test_a_function_without_an_engine_claims_nothing(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """The API service takes no GPU, and needs none, though it has the same settings."""
    claims = tmp_path / "claims"
    function_factory(probe="/health", ENGINE="none", DISPATCH_URL="http://127.0.0.1:9/", GPU_CLAIM_DIR=str(claims))
    assert not claims.exists()


def gpu_of_engine(pid: int) -> str:
    """CUDA_VISIBLE_DEVICES of a process."""
    with open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: PTH123  (not a file of ours)
        variables = dict(line.split(b"=", 1) for line in environ.read().split(b"\0") if line)
    return variables[b"CUDA_VISIBLE_DEVICES"].decode()


def test_the_directory_is_a_setting() -> None:
    """Unset means no claim."""
    assert read_settings({}).gpu_claim_dir is None
    assert str(read_settings({"GPU_CLAIM_DIR": "/data/gpu-claims"}).gpu_claim_dir) == "/data/gpu-claims"

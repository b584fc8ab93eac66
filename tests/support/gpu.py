"""A libnvidia-ml.so.1 that behaves as its environment variables say, compiled from fake_nvml.c."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


def run_python(code: str, library_dir: Path, **environ: str) -> str:
    """Run code in a process of its own, where NVML is what lies in the directory; return what it prints.

    The binding loads the library once per process and never lets go of it.
    """
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("FAKE_NVML_", "CUDA_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=ours | {"LD_LIBRARY_PATH": str(library_dir)} | environ,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the fake library, for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the fake NVML library needs a C compiler (cc or gcc)")
    directory = tmp_path_factory.mktemp("nvml")
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", directory / "libnvidia-ml.so.1", SOURCE], check=True, timeout=60)
    return directory

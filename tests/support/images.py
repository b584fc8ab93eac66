"""Images for tests: the Dockerfile's own targets, built with podman, and stand-ins for images that only a registry has.

The base image is pulled if its registry can be reached; otherwise mmdebstrap makes one of Debian's packages: the same
Debian and the same minor version of Python, but not the same image. All are kept from one test run to the next; layers
of the Dockerfile are built anew as far as their files have changed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.engine import ROOT
from tests.support.pip_source import PipSource
from tests.support.podman import PATH, Podman, skip_or_fail

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = "localhost/comfyfn-test/base"
CPU = "localhost/comfyfn-test/cpu"
NGINX = "localhost/comfyfn-test/nginx"
BUILD_SECONDS = 1200

# What docker-compose.yml wants of the nginx image: nginx, its user, curl.
NGINX_FILE = f"""\
FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light curl && useradd --system nginx
"""


@contextmanager
def only_one(podman: Podman) -> Iterator[None]:
    """One process at a time builds into a store; the others find what it has built."""
    with (podman.store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def base_image(podman: Podman) -> str:
    """What the Dockerfile's stages start from."""
    with only_one(podman):
        if podman.try_run("image", "exists", BASE).returncode != 0:
            name = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
            if podman.try_run("pull", "--quiet", name, timeout_seconds=BUILD_SECONDS).returncode == 0:
                podman.run("tag", name, BASE)
            else:
                _import_debian(podman)
    return BASE


def _import_debian(podman: Podman) -> None:
    if shutil.which("mmdebstrap", path=PATH) is None:
        skip_or_fail("no base image can be pulled, and none be made: install Debian's package mmdebstrap")
    archive = podman.store / "base.tar"
    packages = "--include=python3,python3-venv,ca-certificates"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", str(archive)]
    made = subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-4000:]
    podman.run("import", "--quiet", archive, BASE, timeout_seconds=BUILD_SECONDS)
    archive.unlink()


@pytest.fixture(scope="session")
def cpu_image(podman: Podman, request: pytest.FixtureRequest) -> str:
    """The Dockerfile's target `cpu`, or the image that COMFYFN_IMAGE names in this machine's own podman."""
    given = os.environ.get("COMFYFN_IMAGE")
    if given:
        with only_one(podman):
            _copy(podman, given, CPU)
    else:
        build_target(podman, request.getfixturevalue("base_image"), "cpu", CPU)
    return CPU


def _copy(podman: Podman, name: str, tag: str) -> None:
    archive = podman.store / "given.tar"
    command = ["podman", "save", "--quiet", "--output", str(archive), name]
    subprocess.run(command, env=os.environ | {"PATH": PATH}, check=True)
    loaded = podman.run("load", "--quiet", "--input", archive, timeout_seconds=BUILD_SECONDS)
    archive.unlink()
    podman.run("tag", loaded.rpartition("Loaded image: ")[2], tag)


@pytest.fixture(scope="session")
def nginx_image(podman: Podman, base_image: str) -> str:
    """Debian's nginx in the place of nginx's own image."""
    del base_image  # NGINX_FILE names it
    with only_one(podman):
        podman.run(
            "build", "--quiet", "--network=host", "--tag", NGINX, "-f", "-", body=NGINX_FILE,
            timeout_seconds=BUILD_SECONDS,
        )  # fmt: skip
    return NGINX


def build_target(podman: Podman, base: str, target: str, tag: str, *options: str, context: Path = ROOT) -> None:
    """Build a target of the Dockerfile; the image that had the tag before is removed."""
    pip = PipSource.of_this_machine()
    with only_one(podman):
        config = podman.store / "pip.conf"
        config.touch(mode=0o600)  # an index may want a password
        config.write_text(pip.config)
        mounts = {config: Path("/etc/pip.conf"), **pip.mounts}
        before = podman.try_run("image", "inspect", "--format", "{{.Id}}", tag).stdout.strip()
        podman.run(
            "build", "--quiet", "--network=host", "--layers", "--target", target, "--tag", tag,
            "--build-arg", f"PYTHON_IMAGE={base}", *options,
            *(f"--volume={here}:{there}:ro" for here, there in mounts.items()), context,
            timeout_seconds=BUILD_SECONDS,
        )  # fmt: skip
        config.unlink()
        if before and before != podman.run("image", "inspect", "--format", "{{.Id}}", tag):
            podman.try_run("rmi", before)  # a container may still use it

"""Real containers: podman with a store of its own, so that no image, container or network of this machine is touched.

The store lies in the virtual environment that runs the tests and lasts as long as that one; see tests/support/images.py
for what is built into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.function_process import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
}
"""What is needed, and the package of Debian that has it."""

# Without CAP_SYS_RESOURCE podman's own limits of files and processes can't be set; crun refuses hybrid cgroups; names
# of services are resolved only in netavark's networks; locks in shared memory would be those of every store.
CONFIG = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{run}/tmp"
[network]
network_backend = "netavark"
network_config_dir = "{store}/networks"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{store}/storage"
runroot = "{run}/storage"
[storage.options.overlay]
skip_mount_home = "true"  # or `rm -r` of the environment would find a mount in it
"""


@dataclass(frozen=True)
class Podman:
    """Podman with its images, containers and networks in one directory.

    Attributes:
        store: The directory.
    """

    store: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes podman, and what calls it, use the store."""
        return {
            "PATH": PATH,
            "CONTAINERS_CONF": str(self.store / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.store / "storage.conf"),
            "BUILDAH_FORMAT": "docker",  # the format of OCI has no HEALTHCHECK
        }

    def prepare(self) -> None:
        """Write the store's configuration."""
        # Sockets lie below it, and their paths have to be short.
        run = f"/run/comfyfn-tests-{hashlib.sha256(bytes(self.store)).hexdigest()[:8]}"
        (self.store / "work").mkdir(parents=True, exist_ok=True)
        for name, text in {"containers.conf": CONFIG, "storage.conf": STORAGE}.items():
            mine = self.store / f"{name}.{os.getpid()}"
            mine.write_text(text.format(store=self.store, run=run))
            mine.replace(self.store / name)  # at once, as other processes read it

    def try_run(
        self, *arguments: str | Path, body: str = "", timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, however it ends."""
        return subprocess.run(
            ["podman", *map(str, arguments)],  # noqa: S607  (found on PATH)
            env=os.environ | self.environ,
            cwd=self.store / "work",  # conmon leaves a file there where memory has run out
            input=body,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def run(self, *arguments: str | Path, body: str = "", timeout_seconds: float = 120) -> str:
        """Run a command that has to succeed; what it prints, without white space around it."""
        done = self.try_run(*arguments, body=body, timeout_seconds=timeout_seconds)
        assert done.returncode == 0, f"podman {' '.join(map(str, arguments))}: {done.stderr[-4000:]}"
        return done.stdout.strip()

    @contextmanager
    def container(self, *arguments: str | Path) -> Iterator[Container]:
        """`podman run` in the background with these arguments; at the end the container and its volumes are removed."""
        container = Container(self, self.run("run", "--detach", *arguments))
        try:
            yield container
        finally:
            self.run("rm", "--force", "--time", "0", "--volumes", container.id)

    @contextmanager
    def network(self, name: str) -> Iterator[str]:
        """A network from which no route leads out, until the block ends."""
        self.run("network", "create", "--internal", name)
        try:
            yield name
        finally:
            self.run("network", "rm", "--force", name)


class Container:
    """One container, by its id or name."""

    def __init__(self, podman: Podman, name: str) -> None:
        self.id = name
        self._podman = podman

    def exec(self, *command: str, body: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._podman.try_run("exec", "--interactive", self.id, *command, body=body)

    def inspect(self, template: str) -> str:
        """A part of what podman knows of it, by a template of Go."""
        return self._podman.run("inspect", "--format", template, self.id)

    @property
    def address(self) -> str:
        """Its address in its one network."""
        networks: dict[str, dict[str, str]] = json.loads(self.inspect("{{json .NetworkSettings.Networks}}"))
        (network,) = networks.values()
        return network["IPAddress"]

    @property
    def pid(self) -> int:
        """Its first process, as this machine sees it; 0 if it doesn't run."""
        return int(self.inspect("{{.State.Pid}}"))

    @property
    def exit_status(self) -> int:
        """Of the container that has ended."""
        return int(self._podman.run("wait", self.id))

    @property
    def log(self) -> str:
        """What it has logged."""
        done = self._podman.try_run("logs", self.id)
        return done.stdout + done.stderr

    def stop(self, *, grace_seconds: int) -> None:
        """SIGTERM, as a kubelet sends it, and SIGKILL after so many seconds."""
        self._podman.run("stop", "--time", str(grace_seconds), self.id, timeout_seconds=grace_seconds + 60)

    def client(self, port: int = 3000) -> Client:
        """Asks it from this machine."""
        return Client(f"http://{self.address}:{port}")


def skip_or_fail(reason: str) -> None:
    """Skip the test, or fail it where CONTAINER_TESTS is `required`, as continuous integration sets it."""
    if os.environ.get("CONTAINER_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def podman() -> Podman:
    """Podman, where it can be used."""
    if os.geteuid() != 0:
        skip_or_fail("containers with networks and limits need root")
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=PATH) is None:
            skip_or_fail(f"needs {program}: install Debian's package {package}")
    podman = Podman(Path(sys.prefix) / "containers")
    podman.prepare()
    return podman

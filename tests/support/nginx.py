"""The proxy of docker-compose.yml as an ordinary process: its own script, the real nginx, and addresses of loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import urllib3

from function.cli.local import free_port
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin"


class Proxy:
    """nginx in front of replicas that have one port on addresses of 127.0.0.0/8.

    Docker's DNS tells the addresses in a deployment; here a `getent` on PATH does, out of a file.
    """

    def __init__(self, directory: Path, replica_port: int, **environ: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = urllib3.PoolManager(retries=False, timeout=120)
        self.log = directory / "proxy.log"
        self._addresses = directory / "addresses"
        self._process: subprocess.Popen[bytes] | None = None
        self._environ = os.environ | {
            "PATH": f"{directory / 'bin'}:{PATH}",
            "REPLICA_PORT": str(replica_port),
            "CHECK_SECONDS": "0.2",
            "LISTEN": f"127.0.0.1:{self.port}",
            "WORK_DIR": str(directory / "nginx"),
            "NGINX_USER": "root",
            **environ,
        }
        (directory / "bin").mkdir()
        stub = directory / "bin" / "getent"
        stub.write_text(f'#!/bin/sh\nwhile read -r line; do echo "$line  STREAM $2"; done <{self._addresses}\n')
        stub.chmod(0o755)

    def resolve(self, addresses: Sequence[str]) -> None:
        """Say which addresses the replicas' name has from now on."""
        self._addresses.write_text("".join(f"{address}\n" for address in addresses))

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            script = ROOT / "compose" / "nginx" / "run.sh"
            self._process = subprocess.Popen(["/bin/sh", str(script)], env=self._environ, stdout=log, stderr=log)
        wait_until(self._answers, what=f"nginx; log: {self.log}")

    def stop(self) -> None:
        """Ask it to stop, as Docker does, and wait for its end."""
        self.http.clear()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            finally:
                self._process.kill()
                self._process.wait()

    @property
    def config(self) -> str:
        """Nginx's configuration."""
        return (self.directory / "nginx" / "nginx.conf").read_text()

    @property
    def replicas(self) -> set[str]:
        """The addresses that requests go to."""
        lines = (self.directory / "nginx" / "replicas.conf").read_text().split("\n")
        return {line.split()[1].partition(":")[0] for line in lines if "server " in line and "down" not in line}

    def wait_for_replicas(self, *addresses: str) -> None:
        """Wait until requests go to these addresses, and to no others."""
        wait_until(lambda: self.replicas == set(addresses), what=f"requests to {addresses}", timeout_seconds=60)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"nginx ended: {self.log.read_text()[-2000:]}"
        try:
            return self.http.request("GET", f"{self.url}/nginx-health").status == 200
        except urllib3.exceptions.HTTPError:
            return False


def require_nginx() -> None:
    """Skip a test where nginx or curl is missing."""
    for program in ("nginx", "curl"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"needs {program}: install Debian's package of that name")

"""The image of the target `cpu` as a container: read-only root, uid 10001, 1 GiB, no network at all.

COMFYFN_IMAGE names a built image, PODMAN what runs it (default `podman`; `docker` will do):

    podman build --target cpu -t localhost/comfyfn:cpu . && COMFYFN_IMAGE=localhost/comfyfn:cpu pytest tests/deploy
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from function.job import derived_job_id
from tests.e2e.test_main_job import slow_workflow
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = os.environ.get("COMFYFN_IMAGE", "")
PODMAN = shlex.split(os.environ.get("PODMAN", "podman"))

pytestmark = pytest.mark.skipif(not IMAGE, reason="set COMFYFN_IMAGE to a built image of the Dockerfile's target cpu")


class Container:
    """One running container; its data lies in a directory of this machine."""

    def __init__(self, data: Path) -> None:
        data.mkdir(mode=0o777)
        data.chmod(0o777)  # the umask took some of it
        self.data = data
        limits = ["--read-only", "--memory", "1g", "--network", "none", "--cap-drop", "all"]
        volumes = ["--volume", f"{data}:/data", "--tmpfs", "/tmp:rw,mode=1777"]  # noqa: S108  (of the container)
        self.id = self._podman("run", "--detach", *limits, *volumes, IMAGE).stdout.strip()

    def run(self, *command: str, body: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return self._podman("exec", "--interactive", self.id, *command, body=body, check=False)

    def send_event(self, event_id: str, document: dict[str, Any]) -> dict[str, Any]:
        """Send a job as a CloudEvent from inside, return the reply event."""
        headers = {
            "ce-specversion": "1.0",
            "ce-type": "dev.comfyfn.job.requested",
            "ce-source": "/me",
            "ce-id": event_id,
        }
        lines = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
        url = ["-H", "content-type: application/json", "--data-binary", "@-", "http://127.0.0.1:3000/"]
        reply: dict[str, Any] = json.loads(self.run("curl", "-sS", *lines, *url, body=json.dumps(document)).stdout)
        return reply

    def is_ready(self) -> bool:
        """Whether the probe that Compose and Kubernetes use says so."""
        return self.run("curl", "-fsS", "http://127.0.0.1:3000/ready").returncode == 0

    def stop(self) -> None:
        """SIGTERM to the container's first process, as a kubelet sends it, and the wait for its end."""
        self.run("/bin/sh", "-c", "kill -TERM 1")
        self._podman("wait", self.id)

    @property
    def exit_status(self) -> int:
        """Of the container that has ended."""
        return int(self._podman("inspect", "--format", "{{.State.ExitCode}}", self.id).stdout)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._podman("logs", self.id, check=False).stderr

    def remove(self) -> None:
        """Leave nothing behind."""
        self._podman("rm", "--force", self.id)

    def _podman(self, *arguments: str, body: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PODMAN, *arguments], input=body, capture_output=True, text=True, check=check)


@pytest.fixture(name="container")
def _container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path / "data")
    try:
        wait_until(container.is_ready, what="the container's /ready", timeout_seconds=90)
        yield container
    finally:
        container.remove()


def test_one_event_in_and_its_result_out(container: Container) -> None:
    """The main job on a read-only root, as uid 10001, with 1 GiB and no network."""
    assert container.run("id", "-u").stdout.strip() == "10001"
    assert "Read-only file system" in container.run("touch", "/opt/comfyfn/new").stderr
    reply = container.send_event("one", {"workflow": slow_workflow(blurs=1, size=64)})
    assert reply["type"] == "dev.comfyfn.job.completed", reply
    (output,) = reply["data"]["outputs"]
    stored = container.data / output["url"].removeprefix("file:///data/")
    assert stored.stat().st_size == output["size_bytes"]


def test_sigterm_during_a_job_lets_it_end(container: Container) -> None:
    """SIGTERM drains: the job's manifest is stored and the container ends by itself.

    Its answer is not looked at: the client lives in the container and may end with it.
    """
    jobs = container.data / "store" / "results" / "jobs"
    with ThreadPoolExecutor() as pool:
        pool.submit(container.send_event, "long", {"workflow": slow_workflow(blurs=40)})
        status = f"http://127.0.0.1:3000/jobs/{derived_job_id('/me', 'long')}"
        wait_until(lambda: '"executing"' in container.run("curl", "-sS", status).stdout, what="the engine's work")
        assert not any(jobs.glob("*/result.json"))
        container.stop()
    assert any(jobs.glob("*/result.json")), container.log
    assert container.exit_status == 0
    (manifest,) = jobs.glob("*/result.json")
    assert json.loads(manifest.read_text())["status"] == "completed"

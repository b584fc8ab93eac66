"""docker-compose.yml with real containers: four replicas behind nginx, people's scripts, four GPUs of a fake NVML.

podman-compose and podman stand in Docker's place, and Debian's nginx in that of nginx's own image.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.cli.local import free_port
from tests.deploy.test_compose_scripts import run_script
from tests.e2e.test_main_job import slow_workflow
from tests.integration.test_gpu_claim import GPUS
from tests.support.engine import case
from tests.support.function_process import Client
from tests.support.podman import Container
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.podman import Podman

pytestmark = pytest.mark.timeout(1500)  # the first test may build the images

REPLICAS = 4
FILES = ("docker-compose.yml", "compose/laptop.yml", "tests/data/compose/fake-gpus.yml")
INPUT, MODEL = "in_64x48.png", "upscale_models/tiny_srvgg_x2.safetensors"

# What the scripts call. podman-compose's `ps` takes no service. Podman leaves health checks to systemd's timers, and
# where there is no systemd, as in a container, whoever wants to know runs them.
DOCKER = """#!/bin/sh
case "$*" in
"compose ps "*)
    for service; do :; done
    [ "$3" = --quiet ] && quiet=--quiet
    exec podman ps $quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \\
        --filter "label=com.docker.compose.service=$service" ;;
"compose "*) shift; exec podman-compose "$@" ;;
"inspect --format "*)
    (shift 3; for id; do podman healthcheck run "$id" >/dev/null; done)
    exec podman "$@" ;;
esac
exit 9
"""


class Stack:
    """The project as it runs.

    Attributes:
        environ: What the scripts and podman-compose are given.
        url: The proxy's.
    """

    def __init__(self, podman: Podman, environ: dict[str, str]) -> None:
        self.environ = environ
        self.url = f"http://127.0.0.1:{environ['HTTP_PORT']}"
        self._podman = podman

    @property
    def project(self) -> str:
        """What the names of its containers begin with."""
        return self.environ["COMPOSE_PROJECT_NAME"]

    def remove(self) -> None:
        """Leave nothing: podman-compose's own `down` forgets replicas beyond the first."""
        self._podman.run("pod", "rm", "--force", "--time", "0", "--ignore", f"pod_{self.project}")
        self._podman.try_run("network", "rm", "--force", f"{self.project}_default")  # it may not have come so far
        volumes = self._podman.run("volume", "ls", "--quiet", f"--filter=name={self.project}").split()
        if volumes:
            self._podman.run("volume", "rm", "--force", *volumes)

    @property
    def replicas(self) -> list[Container]:
        """Those that run."""
        labels = {"project": self.project, "service": "comfyui-api"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        ids = self._podman.run("ps", "--quiet", "--filter=status=running", *filters).split()
        return [Container(self._podman, name) for name in ids]

    def metric(self, pattern: str) -> list[list[str]]:
        """What a regular expression finds in the metrics of each replica."""
        found = []
        for replica in self.replicas:
            with closing(replica.client()) as client:
                found.append(re.findall(pattern, client.get("/metrics").body.decode()))
        return found

    def gpus(self) -> list[str]:
        """Which GPUs the replicas have, in the order of their names."""
        return sorted(gpu for gpus in self.metric(r'comfyfn_gpu_memory_total_bytes\{gpu="([^"]+)"\}') for gpu in gpus)

    def volume(self, name: str) -> Path:
        """Where a volume lies on this machine."""
        return Path(self._podman.run("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.project}_{name}"))

    def upload(self, source: Path, key: str) -> None:
        """Put a file where models and inputs come from."""
        target = self.volume("shared") / "store" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


@pytest.fixture(name="stack", scope="module")
def _stack(
    podman: Podman, cpu_image: str, nginx_image: str, fake_nvml: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Four replicas, brought up by the script."""
    programs = tmp_path_factory.mktemp("bin")
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)
    environ = podman.environ | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{podman.environ['PATH']}",
        "COMPOSE_FILE": ":".join(FILES),
        "COMPOSE_PROJECT_NAME": f"comfyfn-test-{uuid.uuid4().hex[:8]}",
        "COMFYFN_IMAGE": cpu_image,
        "NGINX_IMAGE": nginx_image,
        "HTTP_PORT": str(free_port()),
        "FAKE_NVML": str(fake_nvml / "libnvidia-ml.so.1"),
        "WAIT_SECONDS": "240",
    }
    stack = Stack(podman, environ)
    try:
        done = run_script("scale-compose.sh", str(REPLICAS), **environ, timeout_seconds=300)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.splitlines()[-1] == f"{REPLICAS} replicas of comfyui-api are healthy"
        yield stack
    finally:
        stack.remove()


@pytest.fixture(name="client", scope="module")
def _client(stack: Stack) -> Iterator[Client]:
    with closing(Client(stack.url)) as client:
        wait_until(lambda: len(serving(stack)) == REPLICAS, what="nginx sends to all", timeout_seconds=60)
        yield client


def serving(stack: Stack) -> set[str]:
    """The addresses that nginx sends requests to."""
    text = Container(stack._podman, f"{stack.project}_nginx_1").exec("cat", "/tmp/comfyfn-nginx/replicas.conf").stdout  # noqa: S108
    return set(re.findall(r"server ([\d.]+):3000", text))


def send(url: str, count: int, workflow: dict[str, object]) -> list[int]:
    """Send jobs at the same time; the status of each answer.

    On new connections: nginx ends those that are idle when it is told of other replicas, whatever is on its way there.
    """
    with closing(Client(url)) as client, ThreadPoolExecutor(count) as pool:
        return [
            answer.status for answer in pool.map(lambda _: client.post("/prompt", {"prompt": workflow}), range(count))
        ]


def test_the_health_check_script_says_that_the_proxy_is_well(stack: Stack, client: Client) -> None:
    """`scripts/health-check.sh` at the proxy's port."""
    done = run_script("health-check.sh", client.url, **stack.environ)
    assert done.returncode == 0, done.stdout


def test_each_replica_claims_a_gpu_of_its_own(stack: Stack) -> None:
    """Four replicas that see the same four GPUs have one each."""
    assert stack.gpus() == GPUS


def test_jobs_that_come_together_spread_over_all_replicas(stack: Stack, client: Client) -> None:
    """Of eight at the same time, each replica runs some, and all are done."""
    assert send(client.url, 2 * REPLICAS, slow_workflow(blurs=12)) == [200] * 2 * REPLICAS
    done = stack.metric(r'comfyfn_jobs_total\{[^}]*outcome="completed"[^}]*\} (\d+)')
    counts = [sum(map(int, found)) for found in done]
    assert min(counts) > 0
    assert sum(counts) == 2 * REPLICAS


def test_the_replicas_share_one_model_cache(stack: Stack, client: Client, model_files: Path) -> None:
    """A model that all four need at once is downloaded by one of them."""
    del client
    stack.upload(model_files / MODEL, f"models/{MODEL}")
    stack.upload(Path("tests/data/comfyui/cases") / INPUT, f"uploads/{INPUT}")

    def ask(replica: Container) -> int:
        with closing(replica.client()) as own:
            return own.post("/prompt", {"prompt": case("10_upscale_srvgg")}).status

    with ThreadPoolExecutor(REPLICAS) as pool:
        assert list(pool.map(ask, stack.replicas)) == [200] * REPLICAS
    misses = stack.metric(r"comfyfn_cache_misses_total(?:\{[^}]*\})? (\d+)")
    assert sum(int(count) for counts in misses for count in counts) == 1
    assert (stack.volume("models") / MODEL).is_file()


def test_after_a_replica_has_died_no_request_fails(stack: Stack, client: Client) -> None:
    """Nginx leaves it out after a check; started again by the script, it has its GPU again and gets requests.

    Docker would start it again by itself; podman's restart policy needs systemd where there is a health check.
    """
    victim = stack.replicas[0]
    address = victim.address
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: address not in serving(stack), what="the check", timeout_seconds=60)
    assert send(client.url, 3 * REPLICAS, slow_workflow(blurs=1, size=64)) == [200] * 3 * REPLICAS
    done = run_script("scale-compose.sh", str(REPLICAS), **stack.environ, timeout_seconds=300)
    assert done.returncode == 0, done.stderr[-4000:]
    wait_until(lambda: len(serving(stack)) == REPLICAS, what="requests to it", timeout_seconds=120)
    assert stack.gpus() == GPUS

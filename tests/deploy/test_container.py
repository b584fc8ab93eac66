"""The image of the target `cpu` as containers: read-only root, uid 10001, 1 GiB, and nothing but S3 to reach.

The image is built for it (tests/support/images.py), or is the one that COMFYFN_IMAGE names in this machine's podman.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from function.job import derived_job_id
from tests.e2e.test_main_job import slow_workflow
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.processes import child_pids, wait_until
from tests.support.redelivery import deliver
from tests.support.s3_container import s3_container

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engine import Answer
    from tests.support.function_process import Client
    from tests.support.podman import Container, Podman
    from tests.support.storage import S3Server

pytestmark = pytest.mark.timeout(1500)  # the first test builds the images

LEASE_SECONDS = 4
DRAIN_SECONDS = 60
LIMITS = ["--read-only", "--memory=1g", "--pids-limit=512", "--cap-drop=all", "--security-opt=no-new-privileges"]
VOLUMES = ["--volume=/data", "--tmpfs=/tmp:rw,mode=1777"]
OUTSIDE = ("192.0.2.1", 80)  # an address of no network (RFC 5737)

# Tries to connect to an address; prints what comes of it.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    print("connected")
except OSError as error:
    print(error.strerror)
"""


class World:
    """A network with an S3 server, from which no route leads anywhere else; containers of the image join it."""

    def __init__(self, podman: Podman, image: str, network: str, s3: S3Server) -> None:
        self.s3 = s3
        self.results = f"s3://{s3.make_bucket()}/results"
        self._podman = podman
        self._arguments = [f"--network={network}", *LIMITS, *VOLUMES]
        self._image = image

    @contextmanager
    def function(self, *options: str) -> Iterator[Container]:
        """A container that is ready; options go to `podman run`."""
        settings = {
            **self.s3.environ,
            "RESULTS_URL": self.results,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        environ = [f"--env={name}={value}" for name, value in settings.items()]
        with self._podman.container(*self._arguments, *environ, *options, self._image) as container:
            wait_until(lambda: is_ready(container), what=f"/ready; log: {container.log}", timeout_seconds=120)
            yield container

    def manifest(self, event_id: str) -> dict[str, Any]:
        """The stored manifest of an event's job."""
        with self.s3.store(self.results) as store:
            key = f"jobs/{derived_job_id(EVENT_SOURCE, event_id)}/result.json"
            manifest: dict[str, Any] = json.loads(store.get(key, max_bytes=2**20))
            return manifest

    def size_of(self, url: str) -> int:
        """How large an output is that S3 has."""
        with self.s3.store(self.results) as store:
            return len(store.get(url.removeprefix(f"{self.results}/"), max_bytes=2**30))


def is_ready(container: Container) -> bool:
    """Whether the probe that Compose and Kubernetes use says so."""
    assert container.pid, f"the container has ended: {container.log}"
    with closing(container.client()) as client:
        return status(client, "/ready") == 200


def status(client: Client, path: str) -> int:
    """What a route answers; 0 for nothing."""
    try:
        return client.get(path).status
    except urllib3.exceptions.HTTPError:
        return 0


def send_and_wait_for_work(client: Client, event_id: str, document: dict[str, Any]) -> Background:
    """Send a job as an event; return when the engine works on it."""
    sent = Background(lambda: client.send_event(event_id, document))
    route = f"/jobs/{derived_job_id(EVENT_SOURCE, event_id)}"
    wait_until(lambda: b'"executing"' in client.get(route).body, what="the engine's work", timeout_seconds=60)
    return sent


def engine_pid(container: Container) -> int:
    """The engine, as this machine sees it: the worker's child that leads a session."""
    (worker,) = child_pids(container.pid)
    return next(pid for pid in child_pids(worker) if os.getsid(pid) == pid)


@pytest.fixture(name="world", scope="module")
def _world(podman: Podman, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("s3")
    with (
        podman.network(f"comfyfn-test-{uuid.uuid4().hex[:8]}") as network,
        s3_container(podman, cpu_image, network, directory) as s3,
    ):
        yield World(podman, cpu_image, network, s3)


@pytest.fixture(name="function", scope="module")
def _function(world: World) -> Iterator[Container]:
    with world.function() as container:
        yield container


def completed(answer: Answer) -> dict[str, Any]:
    """The data of a completed event."""
    assert answer.status == 200, answer.body
    assert answer.json["type"] == "dev.comfyfn.job.completed", answer.json
    data: dict[str, Any] = answer.json["data"]
    return data


def test_one_event_in_and_its_result_out(world: World, function: Container) -> None:
    """The main job as uid 10001 on a read-only root: the reply names an output that S3 has."""
    assert function.exec("id", "-u").stdout.strip() == "10001"
    assert "Read-only file system" in function.exec("touch", "/opt/comfyfn/new").stderr
    with closing(function.client()) as client:
        data = completed(client.send_event("one", {"workflow": slow_workflow(blurs=1, size=64)}))
    (output,) = data["outputs"]
    assert world.size_of(output["url"]) == output["size_bytes"]
    assert world.manifest("one")["outputs"] == data["outputs"]


def test_nothing_but_its_own_network_can_be_reached(world: World, function: Container) -> None:
    """S3 answers; for any other address there is no route, and no name outside is resolved."""
    host, _, port = world.s3.endpoint_url.removeprefix("http://").partition(":")
    assert connect(function, host, port) == "connected"
    assert connect(function, *map(str, OUTSIDE)) == "Network is unreachable"
    assert "name" in connect(function, "example.com", "80").lower()


def connect(container: Container, host: str, port: str) -> str:
    """What comes of a connection from a container."""
    return container.exec("python3", "-c", CONNECT, host, port).stdout.strip()


def test_the_health_check_of_the_image_passes(podman: Podman, function: Container) -> None:
    """HEALTHCHECK runs its curl in the container, and what it asks is healthy."""
    assert function.inspect("{{json .Config.Healthcheck.Test}}").count("curl") == 1
    assert podman.try_run("healthcheck", "run", function.id).returncode == 0
    assert function.inspect("{{.State.Health.Status}}") == "healthy"


def test_only_its_volumes_can_be_written(podman: Podman, cpu_image: str) -> None:
    """Without a read-only root, too, uid 10001 can change nothing but /data and what anybody can."""
    skipped = [part for path in ("/proc/*", "/sys/*", "/dev/*") for part in ("-not", "-path", path)]
    find = ["/", "-xdev", "-not", "-type", "l", "-writable", *skipped]
    run = ["run", "--rm", "--network=none", "--cap-drop=all", "--entrypoint=find", cpu_image, *find]
    writable = set(podman.try_run(*run).stdout.split())
    assert writable - {"/dev"} == {"/data", "/tmp", "/var/tmp", "/run/lock"}  # noqa: S108  (of the container)


def test_the_image_says_what_it_is_and_carries_nothing_else(podman: Podman, cpu_image: str) -> None:
    """Labels are there; neither the sources nor pip's configuration nor a variable that nobody needs is."""
    config = json.loads(podman.run("image", "inspect", "--format", "{{json .Config}}", cpu_image))
    assert config["Labels"]["org.opencontainers.image.title"] == "comfyfn"
    assert config["User"] == "10001:10001"
    names = {variable.partition("=")[0] for variable in config["Env"]}
    assert not {name for name in names if name.startswith(("AWS_", "PIP_")) or "SECRET" in name or "TOKEN" in name}
    look = "ls /src 2>/dev/null; cat /etc/pip.conf /run/pip-authorities.crt 2>/dev/null; ls -A /data"
    run = ["run", "--rm", "--network=none", "--entrypoint=/bin/sh", cpu_image, "-c", look]
    assert podman.try_run(*run).stdout == ""


def test_sigterm_during_a_job_lets_it_end(world: World) -> None:
    """The container drains: the running job's answer arrives, its manifest is stored, and the exit status is 0."""
    with world.function() as container, closing(container.client()) as client:
        sent = send_and_wait_for_work(client, "drained", {"workflow": slow_workflow(blurs=30)})
        container.stop(grace_seconds=DRAIN_SECONDS + 30)
        completed(sent.join())
        assert container.exit_status == 0, container.log
    assert world.manifest("drained")["status"] == "completed"


def test_a_killed_engine_is_replaced_and_the_event_delivered_again_is_done(world: World) -> None:
    """The same container serves it: a sender that delivers again gets the completed event."""
    with world.function() as container, closing(container.client()) as client:
        document = {"workflow": slow_workflow(blurs=20)}
        sent = send_and_wait_for_work(client, "engine", document)
        os.kill(engine_pid(container), signal.SIGKILL)
        answer = sent.join()
        assert answer.status == 503, answer.body
        completed(deliver(lambda: client.send_event("engine", document)))
        assert container.pid


def test_a_killed_worker_is_replaced_and_the_event_delivered_again_is_done(world: World) -> None:
    """Gunicorn starts another worker with an engine of its own; the lost job's lease runs out."""
    with world.function() as container, closing(container.client()) as client:
        document = {"workflow": slow_workflow(blurs=20)}
        sent = send_and_wait_for_work(client, "worker", document)
        os.kill(child_pids(container.pid)[0], signal.SIGKILL)
        with pytest.raises(urllib3.exceptions.HTTPError):
            sent.join()
        completed(deliver(lambda: client.send_event("worker", document)))
    assert world.manifest("worker")["attempt"] == 2


def test_out_of_memory_takes_the_engine_and_not_the_container(world: World) -> None:
    """A workflow that needs more than the limit is killed by the kernel; the container takes the next job."""
    with world.function() as container, closing(container.client()) as client:
        answer = client.send_event("huge", {"workflow": slow_workflow(blurs=1, size=12_000)})
        assert answer.status == 503, answer.body
        small = {"workflow": slow_workflow(blurs=1, size=64)}
        completed(deliver(lambda: client.send_event("small", small)))


def test_the_next_container_serves_the_job_of_one_that_the_kernel_killed(world: World) -> None:
    """Out of memory with exit status 137, as a kubelet sees it; the event is delivered again, to another container."""
    document = {"workflow": slow_workflow(blurs=20)}
    with world.function() as victim, closing(victim.client()) as client:
        sent = send_and_wait_for_work(client, "killed", document)
        exhaust_memory(victim)
        with pytest.raises(urllib3.exceptions.HTTPError):
            sent.join()
        assert victim.exit_status == 137
    with world.function() as successor, closing(successor.client()) as client:
        completed(deliver(lambda: client.send_event("killed", document)))
    assert world.manifest("killed")["attempt"] == 2


def exhaust_memory(container: Container) -> None:
    """Have the kernel kill a container for its memory: its first process is made the first that the kernel takes."""
    with open(f"/proc/{container.pid}/oom_score_adj", "w") as score:  # noqa: PTH123  (not a file of ours)
        score.write("1000")
    container.exec("python3", "-c", "bytearray(2 << 30)")

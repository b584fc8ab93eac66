"""The Dockerfile's target `gpu`, built for real as far as neither a GPU nor 10 GB of downloads are needed.

Real are all instructions, Debian's packages, the baking of a manifest, two Python environments, the engine's start by
CMD on a read-only root, and a job. PyTorch and ComfyUI are stand-ins (tests/support/gpu_stand_ins.py): nothing here
shows that ComfyUI's own requirements install, or that a GPU is used.
"""

from __future__ import annotations

import json
import os
import uuid
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.deploy.test_container import LIMITS, VOLUMES
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import ROOT
from tests.support.gpu_stand_ins import (
    DEBIAN_PACKAGE,
    NODE,
    NODE_PACKAGE,
    TORCH,
    VERSION,
    build_arguments,
    write_context,
    write_stand_ins,
)
from tests.support.images import build_target
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.podman import Container, Podman

pytestmark = [
    pytest.mark.timeout(1500),  # it is built
    pytest.mark.skipif("COMFYFN_IMAGE" in os.environ, reason="COMFYFN_IMAGE names an image; this one has to be built"),
]

IMAGE = "localhost/comfyfn-test/gpu"
MOUNTED_AT = "/stand-ins"


@pytest.fixture(name="gpu_image", scope="module")
def _gpu_image(podman: Podman, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("gpu")
    write_stand_ins(directory / "stand-ins")
    write_context(directory / "context", MOUNTED_AT)
    arguments = [f"--build-arg={name}={value}" for name, value in build_arguments(MOUNTED_AT).items()]
    mount = f"--volume={directory / 'stand-ins'}:{MOUNTED_AT}:ro"
    build_target(podman, base_image, "gpu", IMAGE, mount, *arguments, context=directory / "context")
    return IMAGE


@pytest.fixture(name="container", scope="module")
def _container(podman: Podman, gpu_image: str) -> Iterator[Container]:
    with podman.container("--network=none", *LIMITS, *VOLUMES, gpu_image) as container:
        yield container


def test_the_manifest_is_baked_in(container: Container) -> None:
    """Debian's package, the Python package and the custom node with what it requires are there; no git history is."""
    assert container.exec(DEBIAN_PACKAGE, "--version").returncode == 0
    assert container.exec("ls", "/opt/ComfyUI/custom_nodes").stdout.split() == [NODE, "example.py"]
    listed = json.loads(container.exec("/opt/comfyui/bin/pip", "list", "--format=json").stdout)
    installed = {entry["name"]: entry["version"] for entry in listed}
    assert NODE_PACKAGE in installed
    assert {name: installed[name] for name in TORCH} == dict.fromkeys(TORCH, VERSION)
    assert container.exec("find", "/opt/ComfyUI", "-name", ".git").stdout == ""


def test_the_two_python_environments_do_not_meet(container: Container) -> None:
    """`python` is ComfyUI's, without the function's packages; the function's has none of ComfyUI's."""
    assert container.exec("python", "-c", "import sys; print(sys.prefix)").stdout.strip() == "/opt/comfyui"
    assert "ModuleNotFoundError" in container.exec("python", "-c", "import function").stderr
    assert "ModuleNotFoundError" in container.exec("/opt/comfyfn/bin/python", "-c", "import torch").stderr


def test_what_only_the_build_needs_stays_in_the_build(container: Container) -> None:
    """The compiler, git and the sources of the function are not in the image."""
    for path in ("/usr/bin/gcc", "/usr/bin/git", "/src"):
        assert container.exec("ls", path).returncode != 0, path


def test_cmd_starts_the_engine_on_a_read_only_root_and_a_job_runs(container: Container) -> None:
    """ComfyUI's `main.py` gets the image's flags, with ComfyUI's Python; the job goes through it."""
    runs_a_job(container)
    assert f"started with torch {VERSION} and nodes ['{NODE}', 'example.py']" in container.log


def test_doctor_finds_the_engine_that_runs(container: Container) -> None:
    """`comfyfn doctor` in the container starts no second engine; that there is no GPU is all that it has to say."""
    wait_until(lambda: probe(container, "/ready"), what=f"/ready; log: {container.log}", timeout_seconds=120)
    lines = container.exec("comfyfn", "doctor").stdout.splitlines()
    assert [line[6:22].strip() for line in lines if line.startswith("fail")] == ["gpu"], lines
    assert any("already running" in line for line in lines)


def test_an_operators_cmd_starts_it_too(podman: Podman, gpu_image: str) -> None:
    """It knows nothing of the read-only root, where ComfyUI would make its directory of users."""
    cmd = "--env=CMD=python main.py --normalvram --listen 0.0.0.0"
    with podman.container("--network=none", *LIMITS, *VOLUMES, cmd, gpu_image) as container:
        runs_a_job(container)
        assert container.exec("ls", "-d", "/data/user").returncode == 0


def test_compose_lets_the_function_write_into_the_folders_of_models(podman: Podman, gpu_image: str) -> None:
    """A new volume is filled with the image's folders, which are root's; the service `permissions` gives them away."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["permissions"]
    models, shared = f"models-{uuid.uuid4().hex[:8]}", f"shared-{uuid.uuid4().hex[:8]}"
    volumes = [f"--volume={models}:/opt/ComfyUI/models", f"--volume={shared}:/shared"]
    entrypoint = f"--entrypoint={json.dumps(service['entrypoint'])}"
    write = ["touch", "/opt/ComfyUI/models/checkpoints/a", "/opt/ComfyUI/models/a", "/shared/a"]
    try:
        user = f"--user={service['user']}"
        podman.run("run", "--rm", "--network=none", user, *volumes, entrypoint, gpu_image, *service["command"])
        podman.run("run", "--rm", "--network=none", *volumes, "--entrypoint=[]", gpu_image, *write)
    finally:
        podman.run("volume", "rm", "--force", models, shared)


def runs_a_job(container: Container) -> None:
    """Wait for the engine and have it run a small workflow."""
    wait_until(lambda: probe(container, "/ready"), what=f"/ready; log: {container.log}", timeout_seconds=120)
    body = json.dumps({"prompt": slow_workflow(blurs=1, size=64)})
    url = "http://127.0.0.1:3000/prompt"
    sent = container.exec("curl", "-fsS", "-H", "content-type: application/json", "-d", "@-", url, body=body)
    assert json.loads(sent.stdout)["images"], sent.stderr


def probe(container: Container, path: str) -> bool:
    """Whether a probe from inside answers 200."""
    assert container.pid, f"the container has ended: {container.log}"
    return container.exec("curl", "-fsS", f"http://127.0.0.1:3000{path}").returncode == 0

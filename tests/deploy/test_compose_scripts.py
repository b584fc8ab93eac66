"""`scripts/health-check.sh` and `scripts/scale-compose.sh`, with real curl and small programs in Docker's place."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from function.cli.local import free_port
from tests.support.nginx import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def run_script(
    name: str, *arguments: str, timeout_seconds: float = 60, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as the seed's commands do, from the root of the repository."""
    return subprocess.run(
        ["bash", f"scripts/{name}", *arguments],  # noqa: S607  (bash, as in the commands that people type)
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


class Probed(http.server.BaseHTTPRequestHandler):
    """A function whose probes answer what its server says."""

    def do_GET(self) -> None:
        """Answer one probe."""
        status, document = self.server.answers[self.path]  # type: ignore[attr-defined]  # set below
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its signature)
        """Say nothing."""


@contextmanager
def probed(ready: int, detail: str = "", health: int = 200) -> Iterator[str]:
    """A function in this state; its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Probed)
    said = {"version": "1", "status": "x", **({"detail": detail} if detail else {})}
    server.answers = {"/health": (health, said), "/ready": (ready, said)}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _curl() -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl: install Debian's package of that name")


def test_endpoints_that_are_ready_are_a_table_and_success() -> None:
    """One line for each URL, in their order; exit status 0."""
    with probed(200) as first, probed(200) as second:
        run = run_script("health-check.sh", first, f"{second}/")
        lines = [line.split() for line in run.stdout.splitlines()]
    assert run.returncode == 0, run.stderr
    assert lines[0] == ["ENDPOINT", "HEALTH", "READY", "SECONDS", "DETAIL"]
    assert [(line[0], line[1], line[2]) for line in lines[1:]] == [(first, "200", "200"), (second, "200", "200")]


def test_one_that_is_not_ready_is_named_with_its_reason() -> None:
    """The others' health does not hide it; control characters of its answer don't reach the terminal."""
    with probed(200) as good, probed(503, "the engine is \x1bstarting") as booting:
        run = run_script("health-check.sh", booting, good)
    assert run.returncode == 1
    (line,) = [line for line in run.stdout.splitlines() if line.startswith(booting)]
    assert line.split()[1:3] == ["200", "503"]
    assert line.rstrip().endswith("the engine is u001bstarting") or line.rstrip().endswith(
        "the engine is \\u001bstarting"
    )


def test_one_that_is_unhealthy_fails() -> None:
    """A 500 of /health counts though /ready should answer 200."""
    with probed(200, health=500) as url:
        assert run_script("health-check.sh", url).returncode == 1


def test_a_port_where_nobody_listens_fails() -> None:
    """It is said in words, with the status 000."""
    run = run_script("health-check.sh", f"http://127.0.0.1:{free_port()}", TIMEOUT_SECONDS="5")
    assert run.returncode == 1
    assert re.search(r" 000 +000 .*nobody answers within 5 s$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["localhost:3001"], ["-o", "http://localhost:1"], ["http://a b"]])
def test_what_is_no_url_is_refused(arguments: list[str]) -> None:
    """Exit status 2 and one line; nothing is asked."""
    run = run_script("health-check.sh", *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert "http://localhost:3001" in run.stderr


# Records its arguments; reports as many healthy replicas as HEALTHY says.
DOCKER = r"""#!/bin/bash
echo "$*" >>"$DOCKER_LOG"
case "$*" in
"compose version") exit "${COMPOSE_STATUS:-0}" ;;
"compose up "*) exit "${UP_STATUS:-0}" ;;
"compose ps --quiet comfyui-api") for i in $(seq 4); do echo "id$i"; done ;;
"inspect "*) for i in $(seq 4); do if ((i <= HEALTHY)); then echo healthy; else echo starting; fi; done ;;
"compose logs "*) echo "comfyui-api-4  | GPU_CLAIM_DIR='/shared/gpu-claims': all 3 GPUs are taken" ;;
"compose ps comfyui-api") echo "NAME STATUS" ;;
*) exit 9 ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path) -> dict[str, str]:
    """An environment with this docker, and with an nvidia-smi that lists four GPUs."""
    programs = {
        "docker": DOCKER,
        "nvidia-smi": '#!/bin/bash\nfor i in 0 1 2 3; do echo "GPU $i: A (UUID: GPU-$i)"; done\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "DOCKER_LOG": str(tmp_path / "log"),
        "HEALTHY": "4",
        "POLL_SECONDS": "0.05",
    }


def asked(docker: dict[str, str]) -> list[str]:
    """What docker was asked to do."""
    with open(docker["DOCKER_LOG"]) as log:  # noqa: PTH123  (the name is a variable of the environment)
        return log.read().splitlines()


def test_scaling_uses_the_scale_flag_of_docker_compose(docker: dict[str, str]) -> None:
    """`docker compose up --scale comfyui-api=N`, further options behind it; success once all are healthy."""
    run = run_script("scale-compose.sh", "4", "--no-recreate", **docker)
    assert run.returncode == 0, run.stderr
    assert "compose up --detach --scale comfyui-api=4 --no-recreate" in asked(docker)
    assert run.stdout.splitlines()[-1] == "4 replicas of comfyui-api are healthy"


def test_a_replica_that_does_not_get_healthy_fails_with_its_log(docker: dict[str, str]) -> None:
    """The count and the last lines of the replicas are shown."""
    run = run_script("scale-compose.sh", "4", **docker | {"HEALTHY": "3", "WAIT_SECONDS": "0"})
    assert run.returncode == 1
    assert "only 3 of 4 replicas are healthy" in run.stderr
    assert "all 3 GPUs are taken" in run.stderr


def test_a_failure_of_docker_compose_is_handed_on(docker: dict[str, str]) -> None:
    """Nothing is waited for when `docker compose up` has failed."""
    run = run_script("scale-compose.sh", "2", **docker | {"UP_STATUS": "17"})
    assert run.returncode == 17
    assert not any(line.startswith("inspect") for line in asked(docker))


def test_more_replicas_than_gpus_are_refused(docker: dict[str, str]) -> None:
    """Nothing is started."""
    run = run_script("scale-compose.sh", "5", **docker)
    assert run.returncode == 2
    assert run.stderr.strip() == "5 replicas need as many GPUs; this host has 4"
    assert asked(docker) == ["compose version"]


@pytest.mark.parametrize("number", ["", "four", "-1", "04", "1000", "1; true"])
def test_what_is_no_number_is_refused(docker: dict[str, str], number: str) -> None:
    """Exit status 2 and how it is used; docker is not asked."""
    run = run_script("scale-compose.sh", number, **docker)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: bash scripts/scale-compose.sh N")


def test_without_the_compose_plugin_it_says_so(docker: dict[str, str]) -> None:
    """A docker without `compose` is named."""
    run = run_script("scale-compose.sh", "1", **docker | {"COMPOSE_STATUS": "1"})
    assert run.returncode == 2
    assert "docker compose is missing" in run.stderr

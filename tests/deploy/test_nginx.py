"""The proxy of docker-compose.yml: the real nginx with its script, in front of real functions."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from function.cli.local import free_port
from tests.support.function_process import FunctionProcess
from tests.support.nginx import Proxy, require_nginx
from tests.support.processes import runs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
MIB = 1024**2
SETTINGS = {"MAX_BODY_SIZE_MB": "1", "DEADLINE_SECONDS": "60"}

# Small, and another job each time, so that no replica answers from its cache.
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "small"}},
}


def post(proxy: Proxy, body: bytes, path: str = "/prompt") -> tuple[int, bytes]:
    """POST JSON through the proxy; status and body."""
    answer = proxy.http.request("POST", proxy.url + path, body=body, headers={"Content-Type": "application/json"})
    return answer.status, answer.data


def run_job(proxy: Proxy) -> int:
    """Run the small workflow; the status of its answer."""
    return post(proxy, json.dumps({"prompt": WORKFLOW}).encode())[0]


def jobs_completed(function: FunctionProcess) -> int:
    """How many jobs a replica has completed."""
    text = function.get("/metrics").body.decode()
    found = re.search(r'^comfyfn_jobs_total\{outcome="completed"\} (\S+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else 0


@contextmanager
def proxied(directory: Path, replica_port: int, addresses: tuple[str, ...], **environ: str) -> Iterator[Proxy]:
    """A proxy in front of these addresses, until the block ends."""
    require_nginx()
    directory.mkdir(exist_ok=True)
    proxy = Proxy(directory, replica_port, **environ)
    proxy.resolve(addresses)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, fake_nvml: Path) -> Iterator[dict[str, FunctionProcess]]:
    """Four functions by address that see four GPUs, with one port, model directory, store and directory of claims.

    So does docker-compose.yml run them.
    """
    require_nginx()
    root = tmp_path_factory.mktemp("replicas")
    shared = {"DATA_DIR": str(root / "data"), "GPU_CLAIM_DIR": str(root / "data" / "gpu-claims")}
    gpus = {"LD_LIBRARY_PATH": str(fake_nvml), "FAKE_NVML_COUNT": "4"}
    environ = {"PORT": str(free_port()), **shared, **gpus, **SETTINGS}
    functions: dict[str, FunctionProcess] = {}
    with ExitStack() as stack:
        for address in ADDRESSES:
            (root / address).mkdir()
            own = {f"{name}_DIR": str(root / address / name.lower()) for name in ("INPUT", "OUTPUT")}
            functions[address] = FunctionProcess(root / address, environ | own | {"HOST": address})
            stack.callback(functions[address].stop)
            functions[address].start()
        yield functions


@pytest.fixture(scope="module")
def proxy(replicas: dict[str, FunctionProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy in front of the four."""
    port = replicas[ADDRESSES[0]].port
    with proxied(tmp_path_factory.mktemp("proxy"), port, ADDRESSES, **SETTINGS) as running:
        running.wait_for_replicas(*ADDRESSES)
        yield running


def test_each_replica_has_a_gpu_of_its_own(replicas: dict[str, FunctionProcess]) -> None:
    """Four replicas that see four GPUs report one each, and not the same."""
    metrics = [function.get("/metrics").body.decode() for function in replicas.values()]
    gpus = [re.findall(r'^comfyfn_gpu_memory_total_bytes\{gpu="([^"]+)"\}', text, re.MULTILINE) for text in metrics]
    assert [len(seen) for seen in gpus] == [1, 1, 1, 1]
    assert len({gpu for seen in gpus for gpu in seen}) == 4


def test_requests_spread_over_all_replicas(proxy: Proxy, replicas: dict[str, FunctionProcess]) -> None:
    """Every replica gets its part of the jobs."""
    before = {address: jobs_completed(function) for address, function in replicas.items()}
    assert [run_job(proxy) for _ in range(12)] == [200] * 12
    done = {address: jobs_completed(function) - before[address] for address, function in replicas.items()}
    assert sum(done.values()) == 12
    assert min(done.values()) >= 2


def test_too_large_a_body_is_refused_as_by_the_function(proxy: Proxy, replicas: dict[str, FunctionProcess]) -> None:
    """Nginx has the limit of MAX_BODY_SIZE_MB to the byte, and answers what the function would."""
    too_large = b" " * (MIB + 1)
    status, body = post(proxy, too_large)
    direct = replicas[ADDRESSES[0]].post("/prompt", too_large)
    assert (status, json.loads(body)) == (413, direct.json)
    assert direct.status == 413
    assert post(proxy, b" " * MIB)[0] == 400, "the function must have got the largest body that it takes"


def test_a_job_has_longer_than_its_deadline(proxy: Proxy) -> None:
    """No timeout of the proxy cuts a job before DEADLINE_SECONDS has, which the function answers itself."""
    timeouts = dict(re.findall(r"(proxy_(?:read|send)_timeout|worker_shutdown_timeout) (\d+)s;", proxy.config))
    assert timeouts.keys() == {"proxy_read_timeout", "proxy_send_timeout", "worker_shutdown_timeout"}
    assert all(int(seconds) >= int(SETTINGS["DEADLINE_SECONDS"]) + 30 for seconds in timeouts.values())


def test_a_new_replica_gets_requests_without_a_restart(proxy: Proxy) -> None:
    """Scaling down and up again changes the upstream while nginx runs on."""
    proxy.resolve(ADDRESSES[:2])
    proxy.wait_for_replicas(*ADDRESSES[:2])
    proxy.resolve(ADDRESSES)
    proxy.wait_for_replicas(*ADDRESSES)
    assert run_job(proxy) == 200


def test_a_killed_replica_costs_no_request(proxy: Proxy, replicas: dict[str, FunctionProcess]) -> None:
    """Requests that come before the next check go to the others; the check then takes it out of the upstream."""
    killed = replicas[ADDRESSES[3]]
    pids = [killed.pid, killed.worker_pid]  # a container's end takes all of them
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    killed.wait(30)
    wait_until(lambda: not any(runs(pid) for pid in pids), what="the replica's end")
    assert [run_job(proxy) for _ in range(6)] == [200] * 6
    proxy.wait_for_replicas(*ADDRESSES[:3])
    assert [run_job(proxy) for _ in range(4)] == [200] * 4


class Breaking(http.server.BaseHTTPRequestHandler):
    """A replica that is ready, reads a request, and closes the connection instead of an answer."""

    def do_GET(self) -> None:
        """Answer the probe; break off everything else."""
        if self.path == "/ready":
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._break_off()

    def do_POST(self) -> None:
        """Read the body, break off."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._break_off()

    def _break_off(self) -> None:
        seen: list[str] = self.server.seen  # type: ignore[attr-defined]  # set below
        seen.append(self.command)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its signature)
        """Say nothing."""


@contextmanager
def breaking_replicas() -> Iterator[tuple[int, list[str]]]:
    """Two of them: their port, and the methods of all requests that they were sent."""
    seen: list[str] = []
    first = http.server.ThreadingHTTPServer((ADDRESSES[0], 0), Breaking)
    port = first.server_address[1]
    servers = [first, http.server.ThreadingHTTPServer((ADDRESSES[1], port), Breaking)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.seen = seen  # type: ignore[attr-defined]
        thread.start()
    try:
        yield port, seen
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def test_a_post_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    """A replica that dies with a job makes the request fail: the job may have run. A GET goes to the next one."""
    with breaking_replicas() as (port, seen), proxied(tmp_path / "proxy", port, ADDRESSES[:2]) as proxy:
        proxy.wait_for_replicas(*ADDRESSES[:2])
        assert post(proxy, b"{}")[0] == 502
        assert seen == ["POST"]
    with breaking_replicas() as (port, seen), proxied(tmp_path / "again", port, ADDRESSES[:2]) as proxy:
        proxy.wait_for_replicas(*ADDRESSES[:2])
        assert proxy.http.request("GET", f"{proxy.url}/jobs").status == 502
        assert seen == ["GET", "GET"]


def test_without_a_replica_the_client_is_told_to_come_again(tmp_path: Path) -> None:
    """503 with Retry-After, in the function's own form, instead of a proxy's page."""
    with proxied(tmp_path / "proxy", free_port(), ADDRESSES[:1]) as proxy:
        answer = proxy.http.request("POST", f"{proxy.url}/prompt", body=b"{}")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        line = "no replica of comfyui-api answers"
        assert answer.json() == {"error": line, "code": "no_replica", "message": line, "statusCode": 503}

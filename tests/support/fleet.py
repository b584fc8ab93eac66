"""Several function and API processes over one store, behind round-robin proxies."""

from __future__ import annotations

import hashlib
import os
import signal
import uuid
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from function.storage.local import LocalStore
from function.storage.s3 import S3Store
from tests.support.function_process import Client, FunctionProcess, functions
from tests.support.processes import child_pids, runs, wait_until
from tests.support.proxy import HttpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.storage.objects import ObjectStore
    from tests.support.storage import S3Server

LEASE_SECONDS = 4
"""The shortest that the settings allow."""


@dataclass
class Storage:
    """Where a fleet keeps everything.

    Attributes:
        environ: The settings that say so.
        results: The results, past the functions.
        server: Of S3; None for a directory.
    """

    environ: dict[str, str]
    results: ObjectStore
    server: S3Server | None = None

    def manifest_is_whole(self, manifest: dict[str, Any]) -> bool:
        """Whether every output that a manifest names is there with its digest."""
        root = f"{self.results.url}/"
        found = [
            hashlib.sha256(self.results.get(output["url"].removeprefix(root), max_bytes=2**30)).hexdigest()
            for output in manifest["outputs"]
        ]
        return found == [output["sha256"] for output in manifest["outputs"]]

    def sibling(self, name: str) -> ObjectStore:
        """`models`, `uploads` or `workflows`, as `results`."""
        url = self.environ[f"{name.upper()}_URL"]
        return S3Store(url, make_client=self.server.make_client) if self.server else LocalStore(url)

    def keys(self, prefix: str) -> list[str]:
        """Keys of results."""
        return [info.key for info in self.results.list_objects(prefix)]


@pytest.fixture(scope="module", params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Each kind of store in turn, empty at first."""
    if request.param == "file":
        base = f"file://{tmp_path_factory.mktemp('shared')}"
        yield Storage(_urls(base), LocalStore(f"{base}/results"))
        return
    server: S3Server = request.getfixturevalue("s3_server")
    base = f"s3://{request.getfixturevalue('s3_bucket')}/fleet/{uuid.uuid4().hex}"
    with server.store(f"{base}/results") as results:
        yield Storage({**server.environ, **_urls(base)}, results, server)


def _urls(base: str) -> dict[str, str]:
    return {f"{name}_URL": f"{base}/{name.lower()}" for name in ("MODELS", "UPLOADS", "RESULTS", "WORKFLOWS")}


def kill(function: FunctionProcess) -> None:
    """SIGKILL to everything of a function, as a container dies."""
    workers = child_pids(function.pid)
    engines = [pid for worker in workers for pid in child_pids(worker)]
    for pid in (function.pid, *workers, *engines):
        os.kill(pid, signal.SIGKILL)
    function.wait(10)
    wait_until(lambda: not any(runs(pid) for pid in (*workers, *engines)), what="the death of everything")


@dataclass
class Fleet:
    """Two functions and two API services.

    Attributes:
        storage: Where all of them keep everything.
        functions: With an engine each.
        services: Without one.
        everyone: Asks one of the four, the next one each time.
        api: Asks one of the services, the next one each time.
    """

    storage: Storage
    functions: list[FunctionProcess]
    services: list[FunctionProcess]
    everyone: Client
    api: Client

    @property
    def pods(self) -> list[FunctionProcess]:
        """All four."""
        return [*self.functions, *self.services]

    def engine_runs(self) -> int:
        """How many workflows the engines have run to an end."""
        return sum(len(function.engine_history()) for function in self.functions)

    def ended(self, job_id: str) -> dict[str, Any]:
        """The document of a job once it has ended, asked for at one pod after the other."""
        wait_until(lambda: self.status(job_id) in {"completed", "failed"}, what="the job's end", timeout_seconds=90)
        document: dict[str, Any] = self.everyone.get(f"/jobs/{job_id}").json
        return document

    def status(self, job_id: str) -> str:
        """How a job is doing, says one of the pods."""
        return str(self.everyone.get(f"/jobs/{job_id}").json["status"])


@pytest.fixture(scope="module")
def fleet(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two functions and two API services that send their jobs to the functions in turn."""
    with ExitStack() as stack:
        front, api, functions_proxy = (stack.enter_context(HttpProxy([])) for _ in range(3))
        start = stack.enter_context(functions(tmp_path_factory.mktemp("fleet")))
        common = {**storage.environ, "LEASE_SECONDS": str(LEASE_SECONDS), "DISPATCH_URL": functions_proxy.url}
        with_engine = [start(**common) for _ in range(2)]
        functions_proxy.targets += [function.url for function in with_engine]
        without = [start(**common, ENGINE="none") for _ in range(2)]
        api.targets += [service.url for service in without]
        front.targets += [pod.url for pod in (*with_engine, *without)]
        clients = [stack.enter_context(closing(Client(proxy.url))) for proxy in (front, api)]
        yield Fleet(storage, with_engine, without, *clients)

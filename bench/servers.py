"""Servers that a transfer is measured against, each holding the same object."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.bringing import FLOOR_CONNECTIONS, MANY_CONNECTIONS, Task
from tests.support.storage import S3Server, free_port, running_s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "bench"
KEY = "model.safetensors"
CAPPED_KEY = "capped/model.safetensors"
CAP = "80 MB/s"

# One process in the foreground, as the user who runs the benchmark; what it would write lies below its prefix.
NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr error;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; default_type application/octet-stream;
    client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
    server {{
        listen 127.0.0.1:{port}; root .;
        location /{bucket}/capped/ {{ limit_rate 80m; }}
    }}
}}
"""


@dataclass(frozen=True)
class Source:
    """One object on one server.

    Attributes:
        name: For the table.
        environ: What boto3 has to know of the server.
        task: The transfer, into the file that `in_file` sets.
    """

    name: str
    environ: dict[str, str]
    task: Task


@contextmanager
def nginx(directory: Path, content: Path) -> Iterator[list[Source]]:
    """An nginx with the object plain, and with a cap on each connection.

    Its own ETag will do, and a GET or HEAD of boto3's is one that it can answer.
    """
    port = free_port()
    for key in (KEY, CAPPED_KEY):
        path = directory / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(content, path)
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(port=port, bucket=BUCKET))
    server = S3Server(f"http://127.0.0.1:{port}", "anybody", "anything")
    with subprocess.Popen([program("nginx"), "-p", str(directory), "-c", str(config), "-e", "stderr"]) as process:
        try:
            wait_for(port)
            root = f"{server.endpoint_url}/{BUCKET}"
            capped = f"nginx, {CAP} per connection"
            yield [
                describe("nginx", server, KEY, f"{root}/{KEY}"),
                describe(capped, server, CAPPED_KEY, f"{root}/{CAPPED_KEY}", connections=MANY_CONNECTIONS),
            ]
        finally:
            process.terminate()


@contextmanager
def seaweedfs(directory: Path, content: Path) -> Iterator[list[Source]]:
    """SeaweedFS with the object, stored with its checksum."""
    with running_s3_server(directory) as server, closing(server.make_client()) as client:
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(content), BUCKET, KEY, ExtraArgs={"ChecksumAlgorithm": "CRC64NVME"})
        url = client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": KEY}, ExpiresIn=36_000)
        yield [describe("SeaweedFS", server, KEY, url)]


def describe(name: str, server: S3Server, key: str, url: str, *, connections: int = FLOOR_CONNECTIONS) -> Source:
    """Ask a server for its object."""
    with server.store(f"s3://{BUCKET}") as store:
        info = store.head(key)
    return Source(name, server.environ, Task(BUCKET, key, info.etag, info.size_bytes, url, "", connections))


def program(name: str) -> str:
    """Where a program is, after installing Debian's package of that name if it is missing."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found:
        return found
    if os.geteuid() or not shutil.which("apt-get"):
        sys.exit(f"{name} is missing: install it")
    subprocess.run(["apt-get", "install", "--yes", "--quiet", name], check=True, stdout=subprocess.DEVNULL)  # noqa: S607
    return program(name)


def wait_for(port: int) -> None:
    """Wait until somebody listens on the port."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                sys.exit("nginx did not start")
            time.sleep(0.05)
        else:
            return

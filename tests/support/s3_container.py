"""The S3 server of tests in a container: the command of docker-compose.yml, with the program of these tests."""

from __future__ import annotations

import json
import sysconfig
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.engine import ROOT
from tests.support.processes import wait_until
from tests.support.storage import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.podman import Podman

PORT = 8333


@contextmanager
def s3_container(podman: Podman, image: str, network: str, directory: Path) -> Iterator[S3Server]:
    """SeaweedFS in a network, until the block ends; the image only lends it a file system."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["s3"]
    account = {"accessKey": "admin", "secretKey": "adminsecret"}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "t", "credentials": [account], "actions": actions}]}))
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    options = [f"--network={network}", "--user=0:0", "--entrypoint=/weed", "--volume=/data"]
    mounts = [f"--volume={weed}:/weed:ro", f"--volume={config}:/etc/seaweedfs/s3.json:ro"]
    with podman.container(*options, *mounts, image, *service["command"]) as container:
        server = S3Server(f"http://{container.address}:{PORT}", *account.values())
        wait_until(lambda: _takes_buckets(server), what=f"the S3 server: {container.id}", timeout_seconds=120)
        yield server


def _takes_buckets(server: S3Server) -> bool:
    try:
        server.make_bucket()
    except (BotoCoreError, ClientError):
        return False
    return True

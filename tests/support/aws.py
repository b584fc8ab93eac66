"""AWS on loopback: a moto server, and what a role's policy allows."""

from __future__ import annotations

import os
import subprocess
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

import boto3.session
import urllib3

from function.cli.local import free_port
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ACCOUNT_ID = "210987654321"  # not that of the manifests
REGION = "eu-central-1"


class Aws:
    """A moto server: it keeps what it is told and sends notices, and asks nobody for permission."""

    def __init__(self, directory: Path) -> None:
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }
        self.url = self.environ["AWS_ENDPOINT_URL"]
        with (directory / "moto.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.url.rpartition(":")[2]],
                env=os.environ | {"MOTO_ACCOUNT_ID": ACCOUNT_ID},
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        """Wait until it answers."""
        wait_until(self._answers, what="moto's server", timeout_seconds=60)
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def client(self, service: str) -> Any:
        """A client of boto3's for a service."""
        session = boto3.session.Session("test", "test", region_name=REGION)
        return session.client(service, endpoint_url=self.url)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "moto's server has ended"
        try:
            return urllib3.request("GET", f"{self.url}/moto-api/data.json", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False


# What S3 asks permission for, where that is not called like the operation.
_ACTIONS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}


def action_of(operation: str) -> str:
    """The IAM action of an operation of S3."""
    return _ACTIONS.get(operation, f"s3:{operation}")


def is_allowed(statements: Iterable[dict[str, Any]], action: str, resource: str) -> bool:
    """Whether a policy of statements without conditions allows an action."""
    assert all(statement["Effect"] == "Allow" and "Condition" not in statement for statement in statements)
    return any(
        action in statement["Action"] and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        for statement in statements
    )

"""Checkov on Dockerfile, manifests and Terraform; `.checkov.yaml` and comments beside resources say what is left out.

It lives in an environment of its own, because it pins what the project pins otherwise: `make .venv/.checkov`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.manifests import ROOT

CHECKOV = Path(sys.prefix) / "checkov" / "bin" / "checkov"
FRAMEWORKS = {"dockerfile", "kubernetes", "terraform"}


def reports(directory: Path) -> dict[str, dict[str, Any]]:
    """Checkov's report on each framework."""
    if not CHECKOV.exists():
        pytest.skip("no checkov in the virtual environment: make .venv/.checkov")
    command = [CHECKOV, "--config-file", ROOT / ".checkov.yaml", "--directory", directory, "--output", "json"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(("[", "{")), done.stdout + done.stderr
    found = json.loads(done.stdout)
    return {report["check_type"]: report for report in (found if isinstance(found, list) else [found])}


def failures(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Check and resource of everything that failed or could not be read."""
    assert report["summary"]["parsing_errors"] == 0
    return [(each["check_id"], each["resource"]) for each in report["results"]["failed_checks"]]


def test_checkov_has_nothing_to_say() -> None:
    """Each framework has been looked at, and nothing failed."""
    found = reports(ROOT)
    assert set(found) == FRAMEWORKS
    assert {name: failures(report) for name, report in found.items()} == {name: [] for name in FRAMEWORKS}
    assert {name for name, report in found.items() if report["summary"]["passed"] > 10} == FRAMEWORKS


def test_checkov_would_say_something(tmp_path: Path) -> None:
    """The check can fail: for a bucket that is public."""
    (tmp_path / "main.tf").write_text('resource "aws_s3_bucket_public_access_block" "open" {\n  bucket = "b"\n}\n')
    assert ("CKV_AWS_53", "aws_s3_bucket_public_access_block.open") in failures(reports(tmp_path)["terraform"])

"""Settings and deployments, both ways: what is set exists, and what exists is set or left alone on purpose."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from function.config import setting_variables
from tests.support.manifests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADING = "## Settings that no deployment here sets"


def deployment_files() -> Iterator[Path]:
    """All that sets variables: manifests, overlays, Compose files, the Dockerfile."""
    for directory in ("knative", "k8s", "compose"):
        yield from sorted(path for path in (ROOT / directory).rglob("*") if path.suffix in {".yaml", ".yml", ".env"})
    yield from (ROOT / "docker-compose.yml", ROOT / "Dockerfile")


def names_in(text: str) -> set[str]:
    """The settings that a text names."""
    return {name for name, _, _ in setting_variables()} & set(re.findall(r"\w+", text))


def set_by_deployments() -> set[str]:
    """The settings in deployments, comments left out."""
    lines = [line for path in deployment_files() for line in path.read_text().splitlines()]
    return names_in("\n".join(re.sub(r"(^|\s)#.*", "", line) for line in lines))


def left_alone() -> set[str]:
    """The settings in the first column of the manual's table."""
    section = (ROOT / "docs" / "operations.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    return names_in("\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| ")))


def test_every_setting_is_set_by_a_deployment_or_left_alone_for_a_reason() -> None:
    """A new setting needs a value in a manifest, or a line in docs/operations.md on when to set it."""
    everything = {name for name, _, _ in setting_variables()}
    assert everything - set_by_deployments() - left_alone() == set()


def test_what_the_manual_calls_unset_is_unset() -> None:
    """The table has no setting that a deployment sets."""
    assert left_alone() & set_by_deployments() == set()

"""Fixtures shared by all tests live in tests/support, one module per subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

pytest_plugins = [
    "tests.support.storage",
    "tests.support.engine",
    "tests.support.gpu",
    "tests.support.outputs",
    "tests.support.function_process",
    "tests.support.fleet",
    "tests.support.podman",
    "tests.support.images",
]

# They build the same images, so that one process runs them while others go on with what needs none.
CONTAINERS = tuple(f"tests/deploy/test_{name}.py" for name in ("container", "compose_containers", "gpu_image"))


class _Scheduling(LoadFileScheduling):
    """Each file of tests goes to one process, and so do all that run containers."""

    def _split_scope(self, nodeid: str) -> str:
        return "containers" if nodeid.startswith(CONTAINERS) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Called by pytest-xdist."""
    return _Scheduling(config, log)

"""`/health` and `/ready` while the engine comes, goes and comes back."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.support.engine import case
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory


def engine_that(program: str, home: Path) -> dict[str, str]:
    """Settings with an engine that does this and nothing else."""
    return {"ENGINE": "comfyui", "COMFY_HOME": str(home), "CMD": f"{sys.executable} -c '{program}'"}


def test_the_port_is_open_while_the_engine_boots(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """Proxies meet a function that is alive and says why it isn't ready, from the first moment on."""
    function = function_factory(probe="/health", **engine_that("import time; time.sleep(600)", tmp_path))
    assert function.get("/health").json["status"] == "healthy"
    ready = function.get("/ready")
    assert (ready.status, ready.json["status"]) == (503, "not ready")
    assert ready.json["detail"]
    assert function.get("/models").status == 200


def test_health_turns_bad_when_the_engine_can_not_be_started(function_factory: FunctionFactory, tmp_path: Path) -> None:
    """500 after five starts in vain, also by an engine that ends with status 0, so that the container is replaced."""
    function = function_factory(probe="/metrics", **engine_that("pass", tmp_path))
    wait_until(lambda: function.get("/health").status == 500, what="/health 500", timeout_seconds=60)
    assert function.get("/health").json["status"] == "not healthy"


def test_an_engine_that_ends_with_status_0_is_noticed_and_started_again(function_factory: FunctionFactory) -> None:
    """No job is lost to an engine that is gone: the next one runs in a new process."""
    function = function_factory()
    first = function.engine_pid
    os.kill(first, signal.SIGINT)
    wait_until(lambda: function.log.read_text().count("answers on port") == 2, what="a second engine")
    wait_until(function.is_ready, what="/ready")
    assert function.engine_pid != first
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 200

"""The function before it is built."""

from __future__ import annotations

import pytest

from function.config import read_settings
from function.errors import StorageUnavailableError
from function.lifecycle import Function


def test_a_job_that_comes_while_the_function_is_built_may_come_again() -> None:
    """Whoever waits for jobs or line longer than is reasonable gets a retryable error."""
    function = Function(read_settings({}), None, build_seconds=0)
    with pytest.raises(StorageUnavailableError, match="still being built"):
        _ = function.jobs
    with pytest.raises(StorageUnavailableError, match="still being built"):
        _ = function.line

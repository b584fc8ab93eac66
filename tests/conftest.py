"""Fixtures shared by all tests live in tests/support, one module per subject."""

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

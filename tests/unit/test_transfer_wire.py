from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from function.errors import InputRefusedError, StorageUnavailableError
from function.storage.objects import ObjectChangedError, ObjectMissingError, SlowDownError
from function.transfer import wire
from function.transfer.fetching import Fetch


@pytest.mark.parametrize("name", ["plain.part", "line\nend.part", os.fsdecode(b"latin-\xe9.part")], ids=repr)
def test_fetches_survive_the_pipe(name: str) -> None:
    """Every path arrives as it was sent, in one line."""
    wanted = Fetch("s3://bucket/prefix", "a/b", '"odd', 7, Path("/models") / name)
    line = wire.encode({"wanted": wire.to_wanted(wanted)})
    assert line.count(b"\n") == 1
    assert wire.parse_wanted(wire.parse(line)["wanted"]) == wanted


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ObjectMissingError("s3://b/k"), ObjectMissingError),
        (ObjectChangedError("s3://b/k"), ObjectChangedError),
        (StorageUnavailableError("later"), StorageUnavailableError),
        (SlowDownError("less"), StorageUnavailableError),
        (InputRefusedError("no key"), InputRefusedError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_survive_the_pipe(error: Exception, kind: type[Exception]) -> None:
    """An error arrives as the class that `Fetcher.fetch` promises, with its line."""
    found = wire.parse_error(wire.parse(wire.encode({"error": wire.to_error(error)}))["error"])
    assert (type(found), str(found)) == (kind, str(error))


def test_disk_errors_keep_number_and_path() -> None:
    """An error of the disk arrives as the same subclass of OSError."""
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/models/a.part")
    found = wire.parse_error(wire.parse(wire.encode({"error": wire.to_error(error)}))["error"])
    assert isinstance(found, PermissionError)
    assert (found.errno, found.filename) == (errno.EACCES, "/models/a.part")


def test_unknown_errors_say_their_class_only() -> None:
    """What nobody expected arrives without its text, which may quote anything."""
    found = wire.parse_error(wire.to_error(RuntimeError("secret")))
    assert isinstance(found, StorageUnavailableError)
    assert "RuntimeError" in str(found)
    assert "secret" not in str(found)

"""What an S3 server's refusals are turned into."""

from __future__ import annotations

import botocore.exceptions
import pytest

from function.errors import StorageUnavailableError
from function.storage import s3_errors
from function.storage.objects import ObjectChangedError, ObjectMissingError, SlowDownError, TransientStorageError
from function.storage.s3_errors import error_of_answer, error_of_failure

URL = "s3://bucket/key"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NoSuchKey", ObjectMissingError),
        ("404", ObjectMissingError),
        ("PreconditionFailed", ObjectChangedError),
        ("412", ObjectChangedError),
        ("AccessDenied", StorageUnavailableError),
        ("NoSuchBucket", StorageUnavailableError),
    ],
)
def test_kinds(code: str, kind: type[Exception]) -> None:
    """A missing and a changed object are errors of their own; all else is a store that can't be used."""
    error = error_of_answer(code, URL)
    assert type(error) is kind
    assert str(error).startswith(URL)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDenied", "without s3:ListBucket, S3 answers a missing key the same way"),
        ("403", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", "AWS_SESSION_TOKEN"),
        ("PermanentRedirect", "AWS_REGION"),
        ("SlowDown", "try later"),
        ("SomethingNew", "the store answered SomethingNew"),
    ],
)
def test_remedies(code: str, remedy: str) -> None:
    """The line says what to do, or at least the code."""
    assert remedy in str(error_of_answer(code, URL))


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        *(("SlowDownRead", 503, SlowDownError), ("429", 429, SlowDownError), ("TooManyRequests", 429, SlowDownError)),
        *(("502", 502, TransientStorageError), ("504", 504, TransientStorageError)),
        *(("408", 408, TransientStorageError), ("SomethingNew", 500, TransientStorageError)),
        *(("RequestTimeout", 400, TransientStorageError), ("SlowDown", 503, SlowDownError)),
        *(("NotImplemented", 501, StorageUnavailableError), ("501", 501, StorageUnavailableError)),
        *(("AccessDenied", 403, StorageUnavailableError), ("SomethingNew", 400, StorageUnavailableError)),
    ],
)
def test_what_may_succeed_when_it_is_repeated(code: str, status: int, kind: type[Exception]) -> None:
    """A failing or overloaded server is told by the status where its code is unknown, or a gateway's page has none."""
    assert type(error_of_answer(code, URL, status=status)) is kind


def test_hostile_codes_are_not_repeated() -> None:
    """A server's text reaches the line only if it looks like an error code."""
    assert str(error_of_answer("<b>evil</b>\n", URL)) == f"{URL}: the store answered an error"


def test_failures_are_botocores() -> None:
    """Each failure that has a remedy is a class of botocore (or the one builtin that it raises)."""
    names = set(s3_errors._FAILURES) - {"ValueError"}
    assert {name for name in names if not hasattr(botocore.exceptions, name)} == set()


def test_unknown_failures_are_named() -> None:
    """A failure without a remedy is named by its class alone."""
    assert str(error_of_failure("StrangeError", URL)) == f"{URL}: the request failed (StrangeError)"

from __future__ import annotations

import pytest

from function.storage.objects import TransientStorageError
from function.transfer.patience import Patience, repeated


def test_pauses_grow_and_end() -> None:
    """Five pauses, each in the upper half of a doubling span; the sixth failure is final."""
    pauses: list[float] = []

    def fail() -> None:
        raise TransientStorageError("later")

    with pytest.raises(TransientStorageError, match="later"):
        repeated(fail, Patience(pauses.append))
    assert [0.1 * 2**n * 0.5 <= pause <= 0.1 * 2**n for n, pause in enumerate(pauses, 1)] == [True] * 5


def test_a_success_ends_the_repetition() -> None:
    """What succeeds in the end gives its result."""
    outcomes = iter([TransientStorageError("later"), TransientStorageError("later"), None])

    def sometimes() -> str:
        error = next(outcomes)
        if error:
            raise error
        return "there"

    assert repeated(sometimes, Patience(lambda _: None)) == "there"


def test_progress_renews_patience() -> None:
    """Failures with progress between them don't add up."""
    patience = Patience(lambda _: None)
    for _ in range(20):
        patience.renew()
        patience.bear(TransientStorageError("later"))

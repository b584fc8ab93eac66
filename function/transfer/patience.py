"""How often what failed is tried again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

from function.storage.objects import TransientStorageError

if TYPE_CHECKING:
    from collections.abc import Callable

_ATTEMPTS = 6
_PAUSE_SECONDS = 0.1

_T = TypeVar("_T")


class Patience:
    """Five repetitions, with pauses that double from 0.2 s to 3.2 s and are cut by up to half at random.

    Args:
        sleep: Waits.
    """

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._failures = 0

    def renew(self) -> None:
        """Something went well: count from the beginning."""
        self._failures = 0

    def bear(self, error: TransientStorageError) -> None:
        """Wait before the next attempt, or raise the error when there is none."""
        self._failures += 1
        if self._failures == _ATTEMPTS:
            raise error
        self._sleep(_PAUSE_SECONDS * 2**self._failures * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)


def repeated(call: Callable[[], _T], patience: Patience) -> _T:
    """What a call gives, once it doesn't fail for a moment's reason."""
    while True:
        try:
            return call()
        except TransientStorageError as error:
            patience.bear(error)

"""The queue of jobs that wait for room: first come first served, also between processes.

A job takes a ticket only when it has to wait: a file whose name is its number, locked by the job while it waits. The
ticket of a process that died is not locked any more, and whoever sees it removes it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from function.models.locks import is_locked, lock_within

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.models.locks import FileLock

_LOCK_SECONDS = 10.0


class Place:
    """One job's place in the queue; without a ticket until it has to wait.

    Args:
        queue: The queue.
    """

    def __init__(self, queue: WaitingLine) -> None:
        self._queue = queue
        self._ticket: tuple[str, FileLock] | None = None

    def is_first(self) -> bool:
        """Whether nobody who came earlier is waiting. Called under the directory's lock."""
        numbers = self._queue.waiting()
        return not numbers or (self._ticket is not None and numbers[0] == self._ticket[0])

    def keep(self) -> None:
        """Take a ticket unless there is one already. Called under the directory's lock."""
        if self._ticket is None:
            self._ticket = self._queue.draw()

    def leave(self) -> None:
        """Give the place up."""
        if self._ticket:
            number, lock = self._ticket
            self._queue.tear(number)
            lock.release()
            self._ticket = None


class WaitingLine:
    """The queue of one model directory.

    Args:
        folder: Where tickets lie; made when the first one is drawn.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def empty(self) -> bool:
        """Whether there is no ticket, not even a dead process's: cheap, and needs no lock."""
        return not self._numbers()

    def waiting(self) -> list[str]:
        """Numbers of the jobs that wait, first come first; tickets of the dead are removed.

        Called under the directory's lock.
        """
        numbers = self._numbers()
        alive = [number for number in numbers if is_locked(self._folder / number)]
        for number in set(numbers) - set(alive):
            self.tear(number)
        return alive

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for one job, given up when the context closes."""
        place = Place(self)
        try:
            yield place
        finally:
            place.leave()

    def draw(self) -> tuple[str, FileLock]:
        """The next number, and the lock that says that its holder lives. Called under the directory's lock."""
        self._folder.mkdir(exist_ok=True)
        last = max(self._numbers(), default="0")
        number = f"{int(last) + 1:020}"
        return number, lock_within(self._folder / number, exclusive=True, seconds=_LOCK_SECONDS)

    def tear(self, number: str) -> None:
        """Remove a ticket."""
        (self._folder / number).unlink(missing_ok=True)

    def _numbers(self) -> list[str]:
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []

"""A fetcher that works in a process of its own, so that its CPU time doesn't hold this one's interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.transfer.fetching import Fetch, Fetched


class FetcherProcess:
    """Brings files through a child process, which lives until `stop`."""

    def start(self) -> None:
        """Start the process unless it runs, so that its imports are over when the first file is wanted."""

    def stop(self) -> None:
        """End the process; fetches in flight fail."""

    def set_busy(self, busy: bool) -> None:  # noqa: FBT001  (a state, not an option)
        """Say whether the GPU works, so that fetches leave it CPU time and bandwidth."""

    def fetch(self, wanted: Fetch, *, on_bytes: Callable[[int], None]) -> Fetched:
        """Bring one file; see `Fetcher`."""
        from function.transfer.reader import RangedFetcher  # noqa: PLC0415  (until the process is there)

        return RangedFetcher().fetch(wanted, on_bytes=on_bytes)

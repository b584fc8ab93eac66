"""How many connections one fetch uses: pure, fed with what was measured.

Two connections to a store on the LAN may fill it, and more of them only cost CPU time (two cores, SeaweedFS: four take
a fifth more per byte than two, for the same rate); S3 gives each some 80 MB/s, and only more of them help. Nothing
tells the two apart but trying: where each is slow, all that are allowed are tried, and that is taken back when it
brought little. In between there is nothing to gain: too many cost little, and each step costs a fetch its time.
"""

from __future__ import annotations

FIRST = 2
MOST = 16
BUSY = 2

_SLOW_BYTES_PER_SECOND = 120e6  # of one connection; below it more of them are tried
_WORTH = 1.1  # times the rate
_WINDOW_SECONDS = 0.1
_TRIAL_SECONDS = 0.25  # new connections take a moment to be as fast as the others
_REST_SECONDS = 5.0
_DEAF_SECONDS = 1.0


class Pace:
    """The number of connections of one fetch.

    Args:
        first: How many to begin with.

    Attributes:
        limit: How many there may be now.
    """

    def __init__(self, first: int = FIRST) -> None:
        self.limit = first
        self._before = (0.0, 0)  # the rate that more connections have to beat, and how many there were; 0: no trial
        self._window = (0.0, 0)
        self._resting_until = 0.0
        self._deaf_until = 0.0

    def measure(self, now: float, done_bytes: int) -> None:
        """Look at how far the fetch has come.

        Args:
            now: Seconds of a monotonic clock.
            done_bytes: Bytes that have come over the network so far.
        """
        since, had_bytes = self._window
        if done_bytes == 0 or now - since < (_TRIAL_SECONDS if self._before[0] else _WINDOW_SECONDS):
            return
        self._window = (now, done_bytes)
        if had_bytes:  # else it was only the beginning of the first window
            self._judge(now, (done_bytes - had_bytes) / (now - since))

    def _judge(self, now: float, rate: float) -> None:
        rate_before, limit_before = self._before
        if rate < rate_before * _WORTH:
            self._take_back(now, limit_before)
        elif self._could_grow(rate) and now >= self._resting_until:
            self._before = rate, self.limit
            self.limit = MOST if self.limit >= FIRST else FIRST
        else:
            self._before = 0.0, 0

    def _could_grow(self, rate: float) -> bool:
        return self.limit < FIRST or (self.limit < MOST and rate / self.limit < _SLOW_BYTES_PER_SECOND)

    def _take_back(self, now: float, limit: int) -> None:
        self.limit = max(1, limit)
        self._before = 0.0, 0
        self._resting_until = now + _REST_SECONDS

    def slow_down(self, now: float) -> None:
        """The store asked for less; what several connections hear at the same time counts once."""
        if now >= self._deaf_until:
            self._deaf_until = now + _DEAF_SECONDS
            self._take_back(now, self.limit // 2)
